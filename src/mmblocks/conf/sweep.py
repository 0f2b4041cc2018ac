"""The program behind `mmblocks train -m`: Hydra's own multirun. Run as `python -m mmblocks.conf.sweep`."""

from __future__ import annotations

import os
import sys
import warnings

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from mmblocks import train
from mmblocks.conf.assemble import HYDRA_VERSION, plain_run
from mmblocks.conf.faults import explain
from mmblocks.conf.groups import register_groups
from mmblocks.errors import MMBlocksError


def job(config: DictConfig) -> None:
    """One run of a sweep, in the folder that Hydra made for it."""
    hydra_config = HydraConfig.get()
    raw = plain_run(config, hydra_config.job.name)
    train.run({**raw, "out": hydra_config.runtime.output_dir})


def main() -> str | None:
    """Run the sweep that the command line describes. Every job runs; the first failure is returned in words."""
    register_groups()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed as tracebacks
    warnings.filterwarnings("ignore", message=".*Defaults list is missing `_self_`")
    try:
        hydra.main(version_base=HYDRA_VERSION, config_path=None)(job)()
    except (MMBlocksError, HydraException) as error:
        if os.environ.get("MMBLOCKS_DEBUG") == "1":
            raise
        return str(error) if isinstance(error, MMBlocksError) else explain(error)
    return None


if __name__ == "__main__":
    # Launchers send `job` to other processes by its module's name, which must not be __main__.
    from mmblocks.conf import sweep

    sys.exit(sweep.main())
