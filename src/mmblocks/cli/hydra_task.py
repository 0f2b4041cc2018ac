"""The program behind `mmblocks sweep`: Hydra's multirun over the numbers of trials. Run as `python -m mmblocks.cli.hydra_task`."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig

from mmblocks.conf.assemble import HYDRA_VERSION
from mmblocks.conf.hydra_errors import explain_error
from mmblocks.errors import MMBlocksError
from mmblocks.sweep.trial import run_in_process
from mmblocks.sweep.trials import Sweep


def run_job(config: DictConfig) -> None:
    """One trial of a sweep, in a process of its own; its result is in its folder and is printed in one line."""
    folder = Path(config.folder)
    sweep = Sweep.load(folder)
    trial = sweep.trials[config.trial]
    where = f"[{config.trial + 1}/{len(sweep.trials)}] {trial.name}"
    print(f"{where}: started", flush=True)
    print(f"{where}: {run_in_process(folder / trial.name, sweep.score)}", flush=True)


def main() -> str | None:
    """Run the trials that the command line names, by the launcher it names. Returns what went wrong with launching."""
    ConfigStore.instance().store(name="trials", node={"folder": "???", "trial": "???"})
    try:
        hydra.main(version_base=HYDRA_VERSION, config_path=None, config_name="trials")(run_job)()
    except (MMBlocksError, HydraException) as error:
        if os.environ.get("MMBLOCKS_DEBUG") == "1":
            raise
        return f"mmblocks: {error if isinstance(error, MMBlocksError) else explain_error(error)}"
    return None


if __name__ == "__main__":
    # Launchers send `job` to other processes by its module's name, which must not be __main__.
    from mmblocks.cli import hydra_task as sweep

    sys.exit(sweep.main())
