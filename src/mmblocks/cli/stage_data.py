"""The stages of a recipe or system for `plan` and `inspect`, with their own data or with that of data=FILE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.data.sample.processor import Processor
    from mmblocks.train.stages import Stage

SOURCE_WORDS = ("images=", "videos=", "ignore=")
"""Words about the files of data=FILE: their media folders, and keys of records that may be ignored."""


def read_source_words(words: Mapping[str, str]) -> dict[str, str | list[str]]:
    """The settings of `SOURCE_WORDS` that are given."""
    settings: dict[str, str | list[str]] = {key: words[key] for key in ("images", "videos") if key in words}
    return {**settings, "ignore": words["ignore"].split(",")} if "ignore" in words else settings


def list_stages(
    raw: Mapping[str, Any], name: str | None, files: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> list[Stage]:
    """The stages of a composed recipe, or the one of this name; for a system one stage in which all parts are trained.

    files: replace the data of the stages. settings: of the sources of these files.
    """
    from mmblocks.data.sources.guess import guess_sources
    from mmblocks.model.spec import PARTS
    from mmblocks.settings import format_suggestion
    from mmblocks.train.stages import Stage, read_run

    data = [{**source, **(settings or {})} for source in guess_sources(files)]
    if "stages" in raw:
        stages = [replace(stage, data=data or stage.data) for stage in read_run(raw).stages]
    elif data:
        stages = [Stage("data", data, dict.fromkeys(PARTS, 1e-5), epochs=1, global_batch_size=256)]
    else:
        raise ConfigError("a system has no data of its own; write data=FILE.")
    names = [stage.name for stage in stages]
    if name is not None and name not in names:
        raise ConfigError(f"no stage is called {name!r}.{format_suggestion(name, names)}")
    return [stage for stage in stages if name in (None, stage.name)]


def make_stage_processor(raw: Mapping[str, Any], stage: Stage) -> Processor:
    """The processor of a stage of a composed recipe or system."""
    from mmblocks.data.sample.processor import Processor
    from mmblocks.data.video.video_reader import VideoReader

    return Processor.from_spec(
        raw["model"],
        template=stage.template,
        tokenizer=stage.tokenizer,
        max_tokens=stage.max_tokens,
        visuals=stage.visuals,
        overlong=stage.overlong,
        seed=int(raw.get("seed", 0)),
        video_reader=VideoReader(raw["video_deadline_s"]) if "video_deadline_s" in raw else VideoReader(),
    )
