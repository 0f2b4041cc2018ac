"""An environment with lmms-eval beside this checkout, made by the commands of docs/howto/lmms_eval.md."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/howto/lmms_eval.md"
BLOCK = re.compile(r"```text\n(uv venv.*?)```", re.DOTALL)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a virtual environment: MMBLOCKS_LMMS_ENV names one that is there already."""
    if existing := os.environ.get("MMBLOCKS_LMMS_ENV"):
        return Path(existing)
    folder = tmp_path_factory.mktemp("lmms")
    (commands,) = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    for name in ("lmms-env", "lmms-overrides.txt"):
        commands = commands.replace(name, str(folder / name))
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=ROOT, check=True)
    return folder / "lmms-env"
