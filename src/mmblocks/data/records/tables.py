"""Tables of the `datasets` library: parquet and arrow files, and folders that it saved; nothing is decoded."""

from pathlib import Path
from typing import Any

from mmblocks._optional import import_optional
from mmblocks.data.records.file_patterns import find_files
from mmblocks.errors import DataError


def import_datasets() -> Any:
    """The `datasets` library."""
    return import_optional("datasets", extra="data", to="reading parquet files and data sets of the hub")


def load_table(path: str | tuple[str, ...], split: str, cache: str | None) -> tuple[Any, Path]:
    """The table of files, of an .arrow file or of a folder that `save_to_disk` wrote, and the folder that its paths are
    relative to.
    """
    if isinstance(path, str) and (saved := _load_saved(Path(path), split)) is not None:
        return saved, Path(path)
    files = find_files(path, within="*.parquet")
    library, form = import_datasets(), "arrow" if files[0].suffix == ".arrow" else "parquet"
    try:
        found = library.load_dataset(
            form, data_files=[str(file.absolute()) for file in files], split="train", cache_dir=cache
        )
    except Exception as cause:  # pyarrow's and the library's own errors, wrapped in one another
        raise DataError(
            f"{', '.join(map(str, files))}: cannot be read as {form} ({_find_root_cause(cause)})."
        ) from cause
    return found, Path(path) if isinstance(path, str) and Path(path).is_dir() else files[0].parent


def _load_saved(folder: Path, split: str) -> Any | None:
    """The data set in a folder that `save_to_disk` wrote; None for other folders."""
    if (folder / "dataset_dict.json").is_file():
        inner = folder / split
        if not inner.is_dir():
            known = sorted(one.name for one in folder.iterdir() if one.is_dir())
            raise DataError(f"{folder}: there is no split {split!r}; write split: one of {', '.join(known)}.")
        folder = inner
    if not (folder / "state.json").is_file():
        return None
    try:
        return import_datasets().load_from_disk(str(folder))
    except Exception as cause:  # pyarrow's and the library's own errors
        raise DataError(f"{folder}: cannot be read as a saved data set ({_find_root_cause(cause)}).") from cause


def _find_root_cause(cause: BaseException) -> str:
    """What the innermost error says: the library wraps it in 'An error occurred'."""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return take_first_line(cause)


def take_first_line(cause: BaseException) -> str:
    """The first line of an error's message."""
    return (str(cause) or repr(cause)).splitlines()[0].rstrip(".")
