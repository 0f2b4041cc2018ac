"""Files that ship with the package: the tiny model, its text tokenizer, two images, a photograph-sized one, a video."""

from pathlib import Path

from mmblocks.errors import CheckpointError

FOLDER = Path(__file__).parent


def find_tiny_model() -> Path:
    """Folder of the bundled tiny OneVision."""
    return _require_path(FOLDER / "tiny")


def find_media(name: str) -> Path:
    """A bundled image or video."""
    return _require_path(FOLDER / "media" / name)


def _require_path(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"{path} is missing; the installation is damaged, install mmblocks again.")
    return path


def resolve_source(source: str) -> str:
    """A hub id or folder as transformers takes it; "mmblocks:NAME" is a folder that ships with the package."""
    return str(FOLDER / source.removeprefix("mmblocks:")) if source.startswith("mmblocks:") else source
