"""The protocol of each kind of component, the capabilities that a component may declare, and the registries.

A capability is a protocol that only some components of a kind have. A component declares one by having its members; one
that declares none works too. `mmblocks show KIND NAME` prints them. Importing this imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar, runtime_checkable

from mmblocks.faults import Fault
from mmblocks.registry import Registry
from mmblocks.room import check_component_fits
from mmblocks.shapes import Scenario, Size, VisualPlan, VisualShape

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from mmblocks.batch import Instructions, Packing, RowIndex
    from mmblocks.conversation import Message, Visual
    from mmblocks.tokenizers.lowering import LoweredPlan

P = TypeVar("P", bound=VisualPlan)
T = TypeVar("T")


def has_capability(component: object, capability: type[T]) -> TypeGuard[T]:
    """Whether a component declares a capability; a flag that is False, such as `per_token = False`, switches it off.

    Properties that are no flags are looked up without being computed: one may read a file.
    """
    kinds = capability.__annotations__
    flags = [name for name, kind in kinds.items() if kind in (bool, "bool")]
    if not all(getattr(component, name, False) for name in flags):  # asked for every sample: most have not the flag
        return False
    methods = [name for name in vars(capability) if not name.startswith("_")]
    return all(
        inspect.getattr_static(component, name, None) is not None or hasattr(component, name)
        for name in (*kinds, *methods)
        if name not in flags
    )


def describe_capabilities(component: object, capabilities: Sequence[type]) -> list[str]:
    """One sentence for each of these capabilities that a component declares."""
    return [str(inspect.getdoc(one)).partition("\n")[0] for one in capabilities if has_capability(component, one)]


# Encoders -----------------------------------------------------------------------------------------------------------


@runtime_checkable
class VisionEncoder(Protocol):
    """Normalised pixels (views, 3, view_px) to features (views, grid, dim): patches only, no CLS, no registers."""

    dim: int
    view_px: Size
    grid: Size
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    spatial: bool
    """Whether `grid` has the image's rows and columns; False for one row of tokens, such as (1, CLS + patches)."""
    squash: bool
    """How an image that is not square becomes a view: True resizes the whole image, False resizes and crops its middle."""

    def __call__(self, pixels: Tensor) -> Tensor: ...


@runtime_checkable
class ByteEncoder(VisionEncoder, Protocol):
    """`takes_bytes`: it is given pixels as they are stored, uint8, and normalises them itself."""

    takes_bytes: bool


# Projectors ---------------------------------------------------------------------------------------------------------


@runtime_checkable
class Projector(Protocol):
    """Features (views, h, w, in_dim) to the LLM's width (views, h2, w2, out_dim).

    `forward(x) == head(body(x))`, where `head` is the last affine map per token (or identity), so that linear operations
    on the grid may move in front of it.
    """

    body: nn.Module
    head: nn.Module
    spatial: bool
    """Whether the grid it returns has the image's rows and columns; False for learned queries, whose grid is (1, queries)."""

    def out_grid(self, grid: Size) -> Size:
        """The grid after projection. Raises `ConfigError` for a grid it cannot take."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class PerTokenProjector(Projector, Protocol):
    """`per_token`: its body maps every cell by itself, and is given only the cells that tokens are made of, (cells, in_dim)."""

    per_token: bool


@runtime_checkable
class InstructedProjector(Projector, Protocol):
    """`needs_text`: it reads the question about each view, tokenised by its own `text_tokenizer`, beside the features.

    `forward(x, instructions) == head(body(x, instructions))`. It is a `Projector` too: without instructions, the question
    is empty.
    """

    needs_text: bool
    text_tokenizer: PreTrainedTokenizerBase
    """Named by a setting of the projector."""
    vocab_size: int
    """The text tokenizer's ids are below it."""
    max_text_tokens: int
    """Longer questions are cut, on the side that the text tokenizer cuts."""

    def __call__(self, x: Tensor, instructions: Instructions | None = None) -> Tensor: ...


# Visual tokenizers and poolings -------------------------------------------------------------------------------------


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
    """How one image or video becomes views for the encoder, and how their features become visual tokens."""

    learned_tokens: tuple[str, ...]
    """Names of the learned tokens it inserts, such as ("newline",). Their weights are the model's."""
    scenarios: frozenset[Scenario]

    def find_faults(self) -> list[Fault]:
        """Why it cannot work with the grid and view it was given, with the setting at fault as key; empty when it can."""
        ...

    def plan(self, visual: VisualShape) -> P: ...

    def count_tokens(self, plan: P) -> int: ...

    def assemble(self, x: Tensor, plan: P, learned_tokens: Mapping[str, Tensor]) -> Tensor:
        """(views, h, w, d) to (plan.num_tokens, d)."""
        ...


@runtime_checkable
class LowerableTokenizer(Protocol):
    """`lower_plan`: it gives the cells of each token as integers, so that one gather makes all visual tokens of a batch.

    See `mmblocks.tokenizers.lowering`. `assemble` is the reference implementation of this gather.
    """

    lowerable_assemble: Callable[..., Tensor]
    """The `assemble` that `lower_plan` stands for (`lowerable_assemble = assemble`): a subclass with another is not lowered."""

    def lower_plan(self, plan: Any) -> LoweredPlan | None:
        """`assemble` in integers; None for a plan that has no such form."""
        ...


@runtime_checkable
class FeaturePoolingTokenizer(Protocol):
    """`before_projector`: it changes the encoder's features of an image or video before they are projected."""

    def before_projector(self, x: Tensor) -> Tensor:
        """(views, h, w, encoder dim) to the same with other h and w, or as they are."""
        ...


def apply_before_projector(tokenizer: object, x: Tensor) -> Tensor:
    """Features of an image or video as its tokenizer wants them projected."""
    return tokenizer.before_projector(x) if isinstance(tokenizer, FeaturePoolingTokenizer) else x


# Backbones and chat templates ---------------------------------------------------------------------------------------


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
        """(tokens, dim) to (tokens, dim), or to (rows, dim) with `rows`; causal within each packed sequence."""
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(n, dim) to (n, vocab_size)."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a rendered conversation: text, or an image or video.

    learn: whether the model is trained to write it. literal: text of the conversation, tokenised without control tokens,
    so that "<|im_end|>" in a question ends no turn; False for the template's own text.
    """

    content: str | Visual
    learn: bool = False
    literal: bool = False


class ChatTemplate(Protocol):
    """Messages to spans. What is learned is decided here, never by searching a rendered string."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        ...

    def to_spans(self, messages: Sequence[Message]) -> list[Span]: ...

    def open_answer(self) -> list[Span]:
        """What stands between the last message and the answer to be written."""
        ...


@runtime_checkable
class SpecialTokenTemplate(ChatTemplate, Protocol):
    """`special`: texts of the template that must each be one token of the text tokenizer."""

    @property
    def special(self) -> tuple[str, ...]: ...


@runtime_checkable
class OneTextTemplate(ChatTemplate, Protocol):
    """`one_text`: text behind an image or video is tokenised as the rest of one text, not as a text of its own."""

    one_text: bool


@runtime_checkable
class RewritingTemplate(ChatTemplate, Protocol):
    """`rewrites_answers`: an earlier answer is written otherwise than the last one, so each is learned behind its own prompt.

    Templates of thinking models drop the thoughts of earlier answers.
    """

    rewrites_answers: bool


encoders: Registry[Any] = Registry(
    "encoder", "mmblocks.encoders", before=check_component_fits, capabilities=(ByteEncoder,)
)
projectors: Registry[Any] = Registry(
    "projector",
    "mmblocks.projectors",
    wired=("in_dim", "out_dim", "grid"),
    before=check_component_fits,
    capabilities=(PerTokenProjector, InstructedProjector),
)
poolings: Registry[Any] = Registry("pooling", "mmblocks.poolings")
tokenizers: Registry[Any] = Registry(
    "tokenizer",
    "mmblocks.tokenizers",
    wired=("view_px", "grid", "spatial", "squash", "pooling"),
    capabilities=(LowerableTokenizer, FeaturePoolingTokenizer),
)
backbones: Registry[Any] = Registry("backbone", "mmblocks.backbones", before=check_component_fits)
templates: Registry[Any] = Registry(
    "template",
    "mmblocks.templates",
    wired=("text_tokenizer",),
    capabilities=(SpecialTokenTemplate, OneTextTemplate, RewritingTemplate),
)

REGISTRIES: dict[str, Registry[Any]] = {
    r.kind: r for r in (encoders, projectors, poolings, tokenizers, backbones, templates)
}
