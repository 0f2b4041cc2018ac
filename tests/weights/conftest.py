"""Trained weights as files, made once for all processes of a test run; a missing package fails with the command that installs it."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mmblocks
from tests.weights import packages
from tests.weights.emoji import write_training_files
from tests.weights.measures import make_spec


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for the processes of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


def make_once(path: Path, make: Callable[[], object]) -> Path:
    """`path`, which one of the processes makes while the others wait."""
    done = path.with_name(f"{path.name}.done")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make()
            done.touch()
    return path


@pytest.fixture(scope="session")
def language_model(shared_folder: Path) -> Path:
    """SmolLM2-135M-Instruct, a folder of transformers."""
    path = shared_folder / "smollm2"
    return make_once(path, lambda: packages.write_language_model(path))


@pytest.fixture(scope="session")
def encoder_file(shared_folder: Path) -> Path:
    """EfficientNet-Lite0's weights under timm's names."""
    path = shared_folder / "efficientnet_lite0.safetensors"
    return make_once(path, lambda: packages.write_encoder(shared_folder))


@pytest.fixture(scope="session")
def emoji(shared_folder: Path, request: pytest.FixtureRequest) -> Path:
    """Drawings of three hands, emoji.json, and records to learn from; pytest's cache keeps the archives."""
    path = shared_folder / "emoji"
    cache = Path(request.config.cache.mkdir("emoji"))  # type: ignore[union-attr]

    def make() -> None:
        packages.unpack_emoji(packages.fetch_emoji_packages(cache), path)
        write_training_files(path, shared_folder)

    return make_once(path, make)


@pytest.fixture(scope="session")
def spec(language_model: Path, encoder_file: Path) -> dict[str, object]:
    return make_spec(language_model, encoder_file)


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def joined(spec: dict[str, object], request: pytest.FixtureRequest) -> mmblocks.OneVision:
    return mmblocks.build(spec, weights="pretrained", dtype=request.param, seed=0).eval()
