"""From records to steps without decoding: samples whose lengths are measured, and a million lengths that become steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
from PIL import Image

from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.mixing.mixture import Mixture
from mmblocks.data.planning.lengths_cache import LengthsCache
from mmblocks.data.planning.measure import SampleSizes, measure_draws
from mmblocks.data.planning.steps import plan_by_tokens
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import Source
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, Unequal
from tests.bench.suites.timing import Way, time_in_turns

NAME = "planning"
WORDS = ["red", "blue", "green", "circle", "square", "the", "a", "and", "is", "of", "what", "colour"]
QUESTION, ANSWER = 12, 30
"""Words of the two questions and of the two answers of a sample."""
LARGEST_PX = (1500, 2000)
STEP_TOKENS, PACK_TOKENS, PACK_VIEWS = 16 * 16384, 16384, 64


def measure(run: Run) -> Iterator[Row]:
    """One image and two turns a sample, about 90 tokens of text."""
    samples, planned = (4, 2000) if run.tiny else (500, 1_000_000)
    with TemporaryDirectory() as folder:
        run.require_time(before=NAME)
        made = _Samples.write(Path(folder), samples, Processor.from_spec(run.scale.spec))
        ways = {
            "JPEG headers": made.measure_files,
            "images in memory": made.measure_images,
            "lengths kept from an earlier start": made.measure_kept,
        }
        _require_same_lengths(made, ways)
        timings = time_in_turns({name: _ignore_number(way) for name, way in ways.items()}, run)
        for name, timing in timings.items():
            rate = samples / timing.median
            yield run.row(NAME, name, "samples measured", "samples/s", rate, spread=timing.spread)
    sizes = _draw_sizes(planned)
    plan = _ignore_number(lambda: plan_by_tokens(sizes, STEP_TOKENS, PACK_TOKENS, PACK_VIEWS))
    timing = time_in_turns({NAME: plan}, run)[NAME]
    yield run.row(NAME, f"lengths of {planned:,} samples", "packs and steps", "s", timing.median, spread=timing.spread)


@dataclass(frozen=True, slots=True)
class _Samples:
    """The same samples as a file of records beside JPEG files, and as conversations that hold their images."""

    folder: Path
    processor: Processor
    mixture: Mixture
    images: tuple[Conversation, ...]

    @classmethod
    def write(cls, folder: Path, number: int, processor: Processor) -> _Samples:
        """Images of random sizes up to 1500 x 2000 pixels."""
        rng, records, images = np.random.default_rng(0), [], []
        for i in range(number):
            height, width = (int(rng.integers(320, most)) for most in LARGEST_PX)
            colours = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            colours.resize((width, height)).save(folder / f"{i}.jpg")
            texts = [" ".join(rng.choice(WORDS, words)) for words in (QUESTION, ANSWER) * 2]
            turns = [{"from": ("human", "gpt")[t % 2], "value": text} for t, text in enumerate(texts)]
            turns[0]["value"] = f"<image>\n{texts[0]}"
            records.append(json.dumps({"id": str(i), "image": f"{i}.jpg", "conversations": turns}))
            blank = Visual("image", Image.new("1", (width, height)))
            messages = [Message(("user", "assistant")[t % 2], (Text(text),)) for t, text in enumerate(texts)]
            messages[0] = Message("user", (blank, Text(f"\n{texts[0]}")))
            images.append(Conversation(tuple(messages), f"{i}"))
        (folder / "records.jsonl").write_text("\n".join(records), encoding="utf-8")
        mixture = Mixture.from_entries([_make_entry(folder)])
        return cls(folder, processor, mixture, tuple(images))

    def measure_files(self) -> np.ndarray:
        return measure_draws(self.mixture, self.mixture.draw_all(), self.processor).sizes.to_table()

    def measure_images(self) -> np.ndarray:
        mixture = Mixture((cast("Source", self.images),), (1.0,), ("images",))
        return measure_draws(mixture, mixture.draw_all(), self.processor).sizes.to_table()

    def measure_kept(self) -> np.ndarray:
        """With the lengths of an earlier start; only what changed since is measured."""
        entries = [_make_entry(self.folder)]
        cache = LengthsCache.from_settings(self.folder / "lengths", entries, {}, self.processor)
        return measure_draws(self.mixture, self.mixture.draw_all(), self.processor, cache=cache).sizes.to_table()

    def encode(self) -> np.ndarray:
        """Sizes of the samples that training makes of the images in memory."""
        rows = []
        for conversation in self.images:
            (encoded,) = self.processor.encode_item(conversation)
            views = sum(len(routed.plan.unique_views) for routed in encoded.plans)
            rows.append((len(encoded), views, encoded.num_labelled, len(encoded) ** 2))
        return SampleSizes.from_rows(rows).to_table()


def _make_entry(folder: Path) -> dict[str, str]:
    return {"name": "llava_json", "path": str(folder / "records.jsonl")}


def _draw_sizes(number: int) -> SampleSizes:
    """Sizes like those of single images."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(800, 8000, number)
    return SampleSizes(tokens, tokens // 800 + 1, rng.integers(1, 300, number), tokens**2)


def _require_same_lengths(made: _Samples, ways: Mapping[str, Callable[[], np.ndarray]]) -> None:
    """Raise `Unequal` where what is measured is not what is encoded."""
    encoded = made.encode()
    for name, measured in ways.items():
        if not np.array_equal(measured(), encoded):
            raise Unequal(f"{NAME}, {name}: lengths are not those of encoded samples.")


def _ignore_number(way: Callable[[], object]) -> Way:
    """Every round takes the same samples."""
    return Way(lambda _: way())
