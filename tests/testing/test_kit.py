"""The kit finds what is wrong: for each law a part that breaks it, and the words that say so."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from mmblocks import testing
from mmblocks.backbones.causal_lm import CausalLM
from mmblocks.batch import Packing
from mmblocks.components import poolings, projectors, tokenizers
from mmblocks.encoders.tiny_conv import TinyConv
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.poolings.bilinear import BilinearPooling
from mmblocks.projectors.mlp import MLP, PerToken
from mmblocks.shapes import Size
from mmblocks.tokenizers.one_view import OneView, pad

SMALL = {"dim": 16, "widths": (8, 8), "heads": 2}


class Projected(PerToken):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU())
        self.head = nn.Linear(out_dim, out_dim)


class WrongGrid(Projected):
    def out_grid(self, grid):
        return Size(grid.height, grid.width + 1)


class NoGrid(Projected):
    def out_grid(self, grid):
        raise ConfigError("never.")


class NotItsHead(Projected):
    def forward(self, x):
        return super().forward(x) + 1


class BentHead(Projected):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.head = nn.Tanh()


class Deaf(Projected):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.unused = nn.Parameter(torch.ones(2))


class Gossip(Projected):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.body = Centred(self.body)


class Centred(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x - x.mean(0))


class LooksAround(Projected):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.body = Smoothed()


class Smoothed(nn.Module):
    def forward(self, x):
        return x - x.mean(-2, keepdim=True)


class FloatOnly(Projected):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.head = Upcast(self.head)


class Upcast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * torch.ones((), dtype=torch.float32 if x.dtype == torch.bfloat16 else x.dtype).expand(1)


class Forgetful(Projected):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.register_buffer("hidden", torch.randn(out_dim), persistent=False)
        self.head = Shifted(self.head)


class Shifted(nn.Module):
    instances = 0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        Shifted.instances += 1
        self.inner, self.shift = inner, float(Shifted.instances)

    def forward(self, x):
        return self.inner(x) + self.shift


class RealOnMeta(Projected):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.scale = nn.Parameter(torch.ones(out_dim, device="cpu"))

    def forward(self, x):
        return self.head(self.body(x) * self.scale) if not x.is_meta else x


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (WrongGrid, r"On 4x4 cells out_grid says 4x5, the output is \(3, 4, 4, 8\)"),
        (NoGrid, "It takes none of the grids 4x4"),
        (NotItsHead, r"forward\(x\) == head\(body\(x\)\)"),
        (BentHead, "The head is one affine map per token"),
        (Deaf, "None reaches unused"),
        (Gossip, "A view gives the same rows whatever stands beside it"),
        (LooksAround, "Without every other cell those that stay are"),
        (FloatOnly, r"It gives torch\.float32"),
        (Forgetful, "The copy gives other numbers"),
        (RealOnMeta, "Some parameters are real"),
    ],
)
def test_a_broken_projector_is_told_which_law_it_breaks(part, said):
    with pytest.raises(testing.ConformanceError, match=said):
        testing.check_projector(part)


def test_all_broken_laws_are_listed_at_once():
    class Twice(Deaf):
        def out_grid(self, grid):
            return Size(grid.height, grid.width + 1)

    with pytest.raises(testing.ConformanceError) as found:
        testing.check_projector(Twice)
    assert "out_grid says 4x5" in str(found.value)
    assert "None reaches unused" in str(found.value)


def test_sound_parts_pass_by_class_and_by_name():
    testing.check_projector(MLP, depth=3)
    testing.check_projector("mlp", depth=1)
    testing.check_projector({"name": "mlp", "depth": 2})


@dataclass(frozen=True)
class WrongPooling(BilinearPooling):
    def __call__(self, x):
        return super().__call__(x)[:, :-1]


@dataclass(frozen=True)
class Doubling(BilinearPooling):
    def __call__(self, x):
        return 2 * super().__call__(x)


@dataclass(frozen=True)
class Mixing(BilinearPooling):
    def __call__(self, x):
        return super().__call__(x - x.mean(0, keepdim=True)) + x[:1].mean()


@dataclass(frozen=True)
class Detached(BilinearPooling):
    def __call__(self, x):
        return super().__call__(x).detach() + 0 * x.sum()


@dataclass(frozen=True)
class CurvedButLinearItSays(BilinearPooling):
    def __call__(self, x):
        return super().__call__(x.pow(3) / 3.25**2)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (WrongPooling, r"On 27x27 cells out_grid says 14x14, the output is \(2, 13, 14, 5\)"),
        (Doubling, "3.25 everywhere becomes 6.5"),
        (Mixing, "Beside two others it differs"),
        (Detached, "None arrive"),
        (CurvedButLinearItSays, "It says linear, but on 27x27, 24x24"),
    ],
)
def test_a_broken_pooling_is_told_which_law_it_breaks(part, said):
    with pytest.raises(testing.ConformanceError, match=said):
        testing.check_pooling(part)


class NoNorm(TinyConv):
    pixel_mean = (0, 0, 0)


class Mirrored(TinyConv):
    def forward(self, pixels):
        return super().forward(pixels).flip(2)


class Narrow(TinyConv):
    def forward(self, pixels):
        return super().forward(pixels)[..., 1:]


class Batched(TinyConv):
    def forward(self, pixels):
        return super().forward(pixels) + pixels.mean()


class Lax(TinyConv):
    def forward(self, pixels):
        return super().forward(pixels[:, :, :48, :48])


class Silent(TinyConv):
    def load_pretrained(self):
        pass


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (NoNorm, "not plain floats"),
        (Mirrored, "A change at the left shows more at the right"),
        (Narrow, r"It states \(1, 4, 4, 16\) and gives \(1, 4, 4, 15\)"),
        (Batched, "In another batch they are"),
        (Lax, "One row too many gives: no error"),
        (Silent, "It says: nothing"),
    ],
)
def test_a_broken_encoder_is_told_which_law_it_breaks(part, said):
    with pytest.raises(testing.ConformanceError, match=said):
        testing.check_encoder(part, **SMALL)


class Miscounting(OneView):
    def count_tokens(self, plan):
        return plan.num_tokens + 1


class Offered(OneView):
    def find_faults(self):
        return [Fault("", "it never works.")]


class Babbling(OneView):
    def plan(self, visual):
        return replace(super().plan(visual), inline_texts=((5, "b"), (1, "a")))


class OtherViews(OneView):
    def plan(self, visual):
        plan = super().plan(visual)
        return replace(plan, views=tuple(replace(v, window=v.window._replace(height=7)) for v in plan.views))


class UnusedMark(OneView):
    learned_tokens = ("newline", "never")


class Backwards(OneView):
    def lower_plan(self, plan):
        made = super().lower_plan(plan)
        return replace(made, rows=made.rows.flip(0))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Miscounting, "An image of 1x1 pixels, frames 1: count 18, num_tokens 17, rows 17"),
        (Offered, "Everywhere it says: .*it never works"),
        (Babbling, r"told after \[5, 1\] of 17 rows"),
        (OtherViews, "a view is 7x28, not 28x28"),
        (UnusedMark, "Nothing brings never"),
        (Backwards, r"An image of 1x1 pixels, frames 1: row \[0\] of 17 is another one assembled"),
    ],
)
def test_a_broken_tokenizer_is_told_which_law_it_breaks(part, said):
    with pytest.raises(testing.ConformanceError, match=said):
        testing.check_tokenizer(part, framing="padded", newline=True)


class Sound(nn.Module):
    """A language model of somebody else's, around one of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = CausalLM("qwen2", vocab_size=64, dim=32, depth=2, heads=4, kv_heads=2, mlp_dim=48)
        self.dim, self.vocab_size, self.max_tokens = 32, 64, 128
        self.embed = self.inner.embed

    def compute_hidden_states(self, x, position_ids, packing, rows=None):
        return self.inner.hidden(x, position_ids, packing, rows)

    def compute_logits(self, hidden):
        return self.inner.logits(hidden)


class Leaky(Sound):
    """Packed sequences are one to it."""

    def compute_hidden_states(self, x, position_ids, packing, rows=None):
        return super().compute_hidden_states(x, torch.arange(len(x)), Packing.from_lengths([len(x)]), rows)


class Foreseeing(Sound):
    def compute_hidden_states(self, x, position_ids, packing, rows=None):
        return super().compute_hidden_states(x + x.mean(0), position_ids, packing, rows)


class Shifting(Sound):
    def compute_hidden_states(self, x, position_ids, packing, rows=None):
        whole = super().compute_hidden_states(x, position_ids, packing)
        return whole if rows is None else whole[rows.index - 1]


class Wordless(Sound):
    def compute_logits(self, hidden):
        return super().compute_logits(hidden)[:, 1:]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Leaky, "Another first sequence moves the second by exactly nothing. It moves by"),
        (Foreseeing, "It is causal: later rows move no earlier one. They move by"),
        (Shifting, "gives these rows of what it gives without: some, none, or all. They are"),
        (Wordless, r"logits gives \(9, 63\), vocab_size is 64"),
    ],
)
def test_a_broken_backbone_is_told_which_law_it_breaks(part, said):
    testing.check_backbone(Sound)
    with pytest.raises(testing.ConformanceError, match=said):
        testing.check_backbone(part)


def test_a_factory_can_be_asked_too():
    testing.check_tokenizer(pad, newline=True)


@pytest.mark.parametrize(
    ("registry", "check"), [(projectors, "projector"), (poolings, "pooling"), (tokenizers, "tokenizer")]
)
def test_each_kind_has_its_check(registry, check):
    assert registry.kind == check
    assert getattr(testing, f"check_{check}") is not None
