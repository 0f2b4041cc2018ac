from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmblocks.data.mixing.wrapped_sources import (
    ConcatenatedSource,
    PromptedSource,
    SourceSubset,
    choose_indices,
    find_subset_fault,
)
from mmblocks.data.records.llava_json import read_llava
from mmblocks.data.records.named_media import MediaRoots
from mmblocks.data.records.turns import Placement
from mmblocks.data.sources import Source, sources
from mmblocks.errors import ConfigError, DataError
from mmblocks.faults import Fault
from mmblocks.settings import find_faults


@dataclass(frozen=True, slots=True)
class MixtureDataset:
    """One entry below `datasets`; images, videos and prompt are ours."""

    json_path: str
    sampling_strategy: str = "all"
    images: str | None = None
    videos: str | None = None
    prompt: str = ""


@sources.register("llava_mixture", source="https://github.com/LLaVA-VL/LLaVA-NeXT (scripts/train/onevision.yaml)")
class LlavaMixture(ConcatenatedSource):
    """LLaVA-NeXT's mixture YAML: `datasets`, each with a json_path and a sampling_strategy, one after another.

    sampling_strategy: all, first:N, end:N or random:N, N a number of records or a percentage, rounded up. A dataset may
    also have folders of its own (images, videos) and a prompt that ends its questions. Paths in the file are relative
    to its folder. Unlike LLaVA-NeXT's, "end:0" keeps nothing, "random" is drawn from `seed`, a dataset's records keep
    their order, and what it would silently take for "all" is refused. The other settings are those of `llava_json`.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        videos: str | None = None,
        placement: Placement = "lone_first",
        frames_fps: float = 2.0,
        seed: int = 0,
        ignore: tuple[str, ...] = (),
    ) -> None:
        file = Path(path)
        MediaRoots.from_settings(file.parent, images, videos)
        named = read_datasets(file)
        if lost := _list_missing_files(file, named):
            raise DataError("\n".join(lost))
        parts: list[Source] = []
        for i, one in enumerate(named):
            own_images = images if one.images is None else file.parent / one.images
            own_videos = videos if one.videos is None else file.parent / one.videos
            records = read_llava(
                file.parent / one.json_path,
                own_images,
                video_root=own_videos,
                placement=placement,
                frames_fps=frames_fps,
                ignore=ignore,
            )
            part = SourceSubset(records, choose_indices(len(records), one.sampling_strategy, (seed, i)))
            parts.append(PromptedSource(part, one.prompt) if one.prompt else part)
        super().__init__(parts, [one.json_path for one in named])

    @staticmethod
    def find_faults(settings: Mapping[str, Any]) -> list[Fault]:
        """What is wrong with the file, and what it names that is not there; no record is read."""
        file = Path(settings["path"])
        try:
            return [Fault("", text, severity="missing") for text in _list_missing_files(file, read_datasets(file))]
        except (ConfigError, DataError) as error:
            return [Fault("", str(error))]


def read_datasets(file: Path) -> list[MixtureDataset]:
    """The entries of a mixture file. Raises one `ConfigError` that lists every fault with its place."""
    if not file.is_file():
        raise DataError(f"{file}: there is no such file.")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise DataError(f"{file}: not YAML: {cause}.") from cause
    entries = raw.get("datasets") if isinstance(raw, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{file}: there is no list 'datasets'; write datasets: and an entry with a json_path.")
    if faults := [fault for i, one in enumerate(entries) for fault in _find_entry_faults(one, f"datasets.{i}")]:
        raise ConfigError("\n".join(f"{file}: {fault}" for fault in faults), faults=faults)
    return [MixtureDataset(**entry) for entry in entries]


def _find_entry_faults(entry: object, where: str) -> Iterator[Fault]:
    if not isinstance(entry, Mapping):
        yield Fault(where, f"{entry!r:.80} is not a dataset.", "Write json_path: FILE.")
        return
    yield from find_faults(MixtureDataset, {str(key): value for key, value in entry.items()}, where)
    if fault := find_subset_fault(entry.get("sampling_strategy", "all"), "sampling_strategy"):
        yield fault.move_below(where)


def _list_missing_files(file: Path, named: list[MixtureDataset]) -> list[str]:
    return [
        f"{file}: datasets.{i}: {file.parent / path} does not exist; paths are relative to the file's folder."
        for i, one in enumerate(named)
        for path in (one.json_path, one.images, one.videos)
        if path is not None and not (file.parent / path).exists()
    ]
