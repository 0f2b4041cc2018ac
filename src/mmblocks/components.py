"""What each kind of component promises, and the registries that hold them. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from mmblocks.faults import Fault
from mmblocks.registry import Registry
from mmblocks.room import check_component_fits
from mmblocks.shapes import Scenario, Size, VisualPlan, VisualShape

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from mmblocks.batch import Instructions, Packing, RowIndex
    from mmblocks.conversation import Message, Visual

P = TypeVar("P", bound=VisualPlan)


@runtime_checkable
class VisionEncoder(Protocol):
    """Normalised pixels (views, 3, view_px) to features (views, grid, dim): patches only, no CLS, no registers.

    One that says `takes_bytes = True` is given pixels as they are stored, uint8, and normalises them itself.
    """

    dim: int
    view_px: Size
    grid: Size
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    spatial: bool
    """Whether `grid` is an image's own order; False when it is a mere row of tokens, e.g. (1, CLS + patches)."""
    squash: bool
    """How an image that is not square meets the view: True resizes it whole, False resizes and crops the middle."""

    def __call__(self, pixels: Tensor) -> Tensor: ...


@runtime_checkable
class Projector(Protocol):
    """Features (views, h, w, in_dim) to the LLM's width (views, h2, w2, out_dim).

    `forward(x) == head(body(x))`, where `head` is the last per-token affine map (or identity), so that linear
    operations on the grid may move in front of it. One that says `per_token = True` has a body that maps every cell by
    itself, and is given only the cells that tokens are made of, (cells, in_dim).
    """

    body: nn.Module
    head: nn.Module
    spatial: bool
    """Whether the grid it returns still has an image's order; False for learned queries, whose grid is (1, queries)."""

    def out_grid(self, grid: Size) -> Size:
        """The grid after projection. Raises `ConfigError` for a grid it cannot take."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class InstructedProjector(Protocol):
    """A projector that also reads what was asked about each view: `forward(x, ins) == head(body(x, ins))`.

    It is a `Projector` too: without instructions, nothing was asked. `needs_text = True` says that batches must carry
    them; a projector that does not declare it is never given any.
    """

    needs_text: bool
    text_tokenizer: Any
    """Writes the question's ids. Named by a setting of the projector; longer questions are cut as it says."""
    max_text_tokens: int

    def __call__(self, x: Tensor, instructions: Instructions | None = None) -> Tensor: ...


def needs_text(projector: Any) -> bool:
    """Whether a projector is an `InstructedProjector`."""
    return getattr(projector, "needs_text", False)


@runtime_checkable
class Pooling(Protocol):
    """Fewer cells per grid, without weights. `linear` poolings commute with an affine map per token."""

    linear: bool

    def out_grid(self, grid: Size) -> Size: ...

    def __call__(self, x: Tensor) -> Tensor:
        """(n, h, w, d) to (n, h2, w2, d)."""
        ...


@runtime_checkable
class VisionTokenizer(Protocol[P]):
    """How one visual becomes views for the encoder, and how their features become a row of tokens."""

    learned_tokens: tuple[str, ...]
    """Learned rows it inserts, e.g. ("newline",). The model owns them."""
    scenarios: frozenset[Scenario]

    def find_faults(self) -> list[Fault]:
        """Why it cannot work with the grid and view it was given, with the setting at fault as key; empty when it can."""
        ...

    def plan(self, visual: VisualShape) -> P: ...

    def count_tokens(self, plan: P) -> int: ...

    def assemble(self, x: Tensor, plan: P, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(views, h, w, d) to (plan.num_tokens, d).

        A tokenizer may also have `lower(plan) -> Lowered | None`, the same in integers (see `tokenizers.lowering`): its
        tokens are then made by the one gather of their batch, and `assemble` is what that is tested against.
        """
        ...


@runtime_checkable
class Backbone(Protocol):
    """A causal language model over packed embeddings, with its text tokenizer."""

    dim: int
    vocab_size: int
    max_tokens: int

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(tokens,) to (tokens, dim)."""
        ...

    def compute_hidden_states(
        self, x: Tensor, position_ids: Tensor, packing: Packing, rows: RowIndex | None = None
    ) -> Tensor:
        """(tokens, dim) to (tokens, dim); a token sees only earlier tokens of its own sequence.

        With `rows` to (rows, dim), these rows of the same.
        """
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(n, dim) to (n, vocab_size)."""
        ...


def apply_before_projector(tokenizer: Any, x: Tensor) -> Tensor:
    """Encoder features of a visual as its tokenizer wants them projected: as they are, but for one that pools them
    first and says so by a method of this name.
    """
    first = getattr(tokenizer, "before_projector", None)
    return x if first is None else first(x)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a rendered conversation: text or a visual.

    learn: what the model is trained to write. literal: text that people wrote, tokenised without control tokens, so that
    "<|im_end|>" in a question ends no turn; a template's own text is not.
    """

    content: str | Visual
    learn: bool = False
    literal: bool = False


class ChatTemplate(Protocol):
    """Messages to spans. What is learned is decided here, never by searching a rendered string.

    A template may say `rewrites_answers`: that it writes an answer otherwise once the conversation has gone on (as those of
    thinking models drop the thoughts). Conversations are then learned answer by answer, each behind its own prompt. With
    `one_text` the text behind a visual is tokenised as the rest of one text, without it as a text of its own.
    """

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer. A template may also name `special` texts, which must be tokens of their own."""
        ...

    def to_spans(self, messages: Sequence[Message]) -> list[Span]: ...

    def open_answer(self) -> list[Span]:
        """What stands between the last message and the answer to be written."""
        ...


class Storable(Protocol):
    """Optional: a component whose folder in a checkpoint is not a plain file of tensors (transformers models)."""

    def save_to(self, folder: Path) -> None: ...

    def load_from(self, folder: Path) -> None: ...


encoders: Registry[Any] = Registry("encoder", "mmblocks.encoders", before=check_component_fits)
projectors: Registry[Any] = Registry(
    "projector", "mmblocks.projectors", wired=("in_dim", "out_dim", "grid"), before=check_component_fits
)
poolings: Registry[Any] = Registry("pooling", "mmblocks.poolings")
tokenizers: Registry[Any] = Registry(
    "tokenizer", "mmblocks.tokenizers", wired=("view_px", "grid", "spatial", "squash", "pooling")
)
backbones: Registry[Any] = Registry("backbone", "mmblocks.backbones", before=check_component_fits)
templates: Registry[Any] = Registry("template", "mmblocks.templates", wired=("text_tokenizer",))

REGISTRIES: dict[str, Registry[Any]] = {
    r.kind: r for r in (encoders, projectors, poolings, tokenizers, backbones, templates)
}
