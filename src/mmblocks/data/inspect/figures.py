"""Figures of a mixture from file headers, and single records as the model will see them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby

import numpy as np
from tqdm import tqdm

from mmblocks.batch import IGNORE
from mmblocks.conversation import Conversation, Visual
from mmblocks.data.inspect.lint import Linter, choose_records
from mmblocks.data.inspect.lint_report import Finding, LintedConversation, SourceLint
from mmblocks.data.media.visuals import read_visual_shape
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sample.encode import Encoded, Targets
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sample.visual_placement import place_visuals
from mmblocks.errors import ConfigError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.shapes import RoutedPlan, VisualShape

QUANTILES = (0.05, 0.5, 0.95, 1.0)
MEASURES = ("tokens", "views", "labels")

# Figures of a mixture -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """What samples of one source hold.

    images, videos, text_only, turns: sums over the checked conversations that could be read; a turn is an answer.
    tokens, views, labels: int64 (samples,), of those that can be encoded, the ones beyond the limit too.
    """

    name: str
    images: int
    videos: int
    text_only: int
    turns: int
    tokens: np.ndarray
    views: np.ndarray
    labels: np.ndarray
    lint: SourceLint

    def compute_quantiles(self, measure: str) -> tuple[int, ...] | None:
        """5 %, half, 95 % and all of the samples have at most so many; None without samples."""
        values = getattr(self, measure)
        return tuple(int(v) for v in np.quantile(values, QUANTILES, method="inverted_cdf")) if len(values) else None


def compute_figures(
    mixture: Mixture, processor: Processor, targets: Targets = "answers", *, samples_per_source: int | None = None
) -> list[SourceFigures]:
    """Figures of every source from file headers: of all records, or of `samples_per_source` that are evenly drawn."""
    linter = Linter(processor, targets)
    chosen = [choose_records(len(source), samples_per_source) for source in mixture.sources]
    figures = []
    with tqdm(total=sum(map(len, chosen)), desc="headers", unit="record", leave=False, disable=None) as bar:
        for number, indices in enumerate(chosen):
            tally = _Tally()
            for index in indices:
                tally.add_record(linter.lint_record(mixture, Draw(number, int(index))))
                bar.update()
            figures.append(tally.to_figures(mixture.names[number], len(mixture.sources[number])))
    return figures


class _Tally:
    """Sums of the conversations of one source; the conversations are not kept."""

    def __init__(self) -> None:
        self.num_checked = self.images = self.videos = self.text_only = self.turns = 0
        self.sizes: list[tuple[int, int, int]] = []
        self.faulty: list[tuple[Finding, ...]] = []
        self.cut: list[int] = []

    def add_record(self, checked: Sequence[LintedConversation]) -> None:
        for one in checked:
            self.num_checked += 1
            if one.findings:
                self.faulty.append(one.findings)
            visuals, messages = one.conversation.visuals, one.conversation.messages
            num_images = sum(visual.kind == "image" for visual in visuals)
            self.images += num_images
            self.videos += len(visuals) - num_images
            self.text_only += bool(messages) and not visuals
            self.turns += sum(message.is_learned for message in messages)
            if one.encoded is not None:
                views = sum(len(routed.plan.views) for routed in one.encoded.plans)
                self.sizes.append((len(one.encoded), views, one.encoded.num_labelled))
                self.cut += [one.encoded.num_cut] if one.encoded.num_cut else []

    def to_figures(self, name: str, size: int) -> SourceFigures:
        tokens, views, labels = np.array(self.sizes, dtype=np.int64).reshape(-1, 3).T
        lint = SourceLint(name, size, self.num_checked, tuple(self.faulty), tuple(self.cut))
        return SourceFigures(name, self.images, self.videos, self.text_only, self.turns, tokens, views, labels, lint)


# A single record ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Adjoining text tokens of a prompt that are all trained, or all given. `texts` has one text per token.

    Where several tokens make one letter, the last of them has it and the others are empty.
    """

    texts: tuple[str, ...]
    trained: bool

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """Adjoining visual tokens of the visual `number` (from 1)."""

    number: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class InspectedVisual:
    """A visual of a record: what its header says, the plan made of it, and how its images are read."""

    visual: Visual
    shape: VisualShape
    routed: RoutedPlan
    images: ImageReading = DEFAULT_READING

    @property
    def frames(self) -> tuple[tuple[int, float], ...]:
        """The frames that are shown, in order of their views, with their times in seconds; a frame in several views once."""
        numbers = dict.fromkeys(view.frame for view in self.routed.plan.views)
        return tuple((number, self.shape.compute_frame_time_s(number)) for number in numbers)

    @property
    def frame_rate(self) -> str:
        """Frames per second of the video, for people."""
        return f"{self.shape.fps:g} per second{'' if self.shape.times_s is None else ' on average'}"


@dataclass(frozen=True, slots=True)
class InspectedRecord:
    """A conversation as the model will see it: the prompt in pieces, its visuals, and what the label lint found."""

    origin: str
    prompt: tuple[TextTokens | VisualTokens, ...]
    visuals: tuple[InspectedVisual, ...]
    encoded: Encoded
    findings: tuple[Finding, ...]

    @property
    def target_text(self) -> str:
        return "".join(piece.text for piece in self.prompt if isinstance(piece, TextTokens) and piece.trained)


def inspect_records(
    mixture: Mixture, draw: Draw, processor: Processor, targets: Targets = "answers"
) -> list[InspectedRecord]:
    """The conversations that a record of a mixture is learned from. Raises `DataError` where it cannot be encoded."""
    return [inspect_conversation(one, processor, targets) for one in processor.list_conversations(mixture[draw])]


def inspect_conversation(
    conversation: Conversation, processor: Processor, targets: Targets = "answers"
) -> InspectedRecord:
    """One conversation. A sample beyond the limit of tokens is shown too, and its finding says so."""
    checked = Linter(processor, targets).lint_conversation(conversation)
    if checked.encoded is None:
        processor.encode_item(conversation, targets)  # raises the fault
    assert checked.encoded is not None
    encoded, shown = checked.encoded, place_visuals(conversation, processor.visuals, processor.seed)
    with name_errors(conversation.origin):
        visuals = [
            InspectedVisual(
                visual, read_visual_shape(visual, processor.video_reader, processor.images), routed, processor.images
            )
            for visual, routed in zip(shown.visuals, encoded.plans, strict=True)
        ]
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    prompt = tuple(_split_prompt(encoded, partial(processor.text_tokenizer.decode, **settings)))
    return InspectedRecord(conversation.origin, prompt, tuple(visuals), encoded, checked.findings)


def parse_record(text: str, mixture: Mixture) -> Draw:
    """ "N" is record N of a mixture counted through its sources, "SOURCE:N" one of a source by its number; both from 0."""
    source, _, number = text.rpartition(":")
    if not number.isdecimal() or not (source.isdecimal() or not source):
        raise ConfigError(f"--record {text}: write N, or SOURCE:N with the number of a source; both count from 0.")
    lengths = [len(one) for one in mixture.sources]
    if source and int(source) >= len(lengths):
        raise ConfigError(f"--record {text}: there are {len(lengths)} sources, counted from 0.")
    if source and int(number) >= lengths[int(source)]:
        raise ConfigError(f"--record {text}: source {source} holds {lengths[int(source)]} records, counted from 0.")
    if source:
        return Draw(int(source), int(number))
    if int(number) >= sum(lengths):
        raise ConfigError(f"--record {text}: there are {sum(lengths)} records, counted from 0.")
    ends = list(accumulate(lengths))
    at = next(i for i, end in enumerate(ends) if int(number) < end)
    return Draw(at, int(number) - (ends[at] - lengths[at]))


def _split_prompt(encoded: Encoded, decode: Callable[[Sequence[int]], str]) -> Iterator[TextTokens | VisualTokens]:
    ids, owners = encoded.input_ids.tolist(), [0] * len(encoded)  # for each row the number of its visual, 0 for text
    numbers = [n for n, routed in enumerate(encoded.plans, start=1) for _ in range(routed.plan.num_tokens)]
    for row, number in zip(encoded.visual_positions.tolist(), numbers, strict=True):
        owners[row] = number
    learned = [False, *(target != IGNORE for target in encoded.targets.tolist())]
    keys = [(owner, learned[row]) for row, owner in enumerate(owners)]
    for (owner, trained), group in groupby(range(len(ids)), key=lambda row: keys[row]):
        rows = list(group)
        if owner:
            yield VisualTokens(owner, len(rows))
            continue
        # The token in front says whether a space stands between.
        known = ids[rows[0] - 1 : rows[0]] if rows[0] and not owners[rows[0] - 1] else []
        texts: list[str] = []
        new: list[int] = []
        for row in rows:
            new.append(ids[row])
            text = decode([*known, *new])
            if text.endswith("\N{REPLACEMENT CHARACTER}") and row != rows[-1]:
                texts.append("")  # a letter of several tokens that is not complete yet
                continue
            texts.append(text[len(decode(known)) if known else 0 :])
            known, new = new, []
        yield TextTokens(tuple(texts), trained)
