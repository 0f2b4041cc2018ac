"""What `mmblocks new` writes: for each kind of component the smallest one that passes its conformance checks."""

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{package}"
version = "0.1.0"
description = "The {kind} {name} for mmblocks"
requires-python = ">=3.11"
dependencies = ["mmblocks"]

[project.entry-points."mmblocks.{kind}"]
{name} = "{name}"

[tool.hatch.build.targets.wheel]
packages = ["src/{name}"]

[tool.pytest.ini_options]
pythonpath = ["src"]
"""

TEST = """\
from mmblocks.testing import check_{kind}

from {name} import {part}


def test_{name}_passes_the_conformance_checks():
    check_{kind}({part}{small})
"""

PROJECTOR = '''\
from torch import nn

from mmblocks.components import projectors
from mmblocks.projectors.mlp import PerToken


@projectors.register("{name}", source="where it comes from", tiny={{"expansion": 2.0}})
class {part}(PerToken):
    """What it does, in one line.   Shape: (..., in_dim) -> (..., out_dim)."""

    def __init__(self, in_dim: int, out_dim: int, expansion: float = 4.0) -> None:
        super().__init__()
        hidden_dim = round(in_dim * expansion)
        self.body = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU())
        self.head = nn.Linear(hidden_dim, out_dim)
'''

POOLING = '''\
from dataclasses import dataclass

from torch import Tensor

from mmblocks.components import poolings
from mmblocks.shapes import Size


@poolings.register("{name}", source="where it comes from")
@dataclass(frozen=True)
class {part}:
    """What it does, in one line.   Shape: (n, h, w, d) -> (n, h2, w2, d)."""

    stride: int = 2
    linear = True

    def out_grid(self, grid: Size) -> Size:
        return Size(-(-grid.height // self.stride), -(-grid.width // self.stride))

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, :: self.stride, :: self.stride]
'''

ENCODER = '''\
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders.vit import require_view
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size


@encoders.register("{name}", source="where it comes from", tiny={{"dim": 16}})
class {part}(nn.Module):
    """What it does, in one line."""

    pixel_mean, pixel_std, spatial, squash = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True, True
    view_px, grid = Size(48, 48), Size(4, 4)

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.dim = dim
        self.patches = nn.Conv2d(3, dim, kernel_size=12, stride=12)

    def forward(self, pixels: Tensor) -> Tensor:
        require_view("{name}", pixels, self.view_px)
        return self.patches(pixels.to(self.patches.weight.dtype)).movedim(1, -1)

    def load_pretrained(self) -> None:
        raise ConfigError("encoder '{name}' has no published weights; train it.")
'''

TOKENIZER = '''\
from mmblocks.components import tokenizers
from mmblocks.shapes import Size
from mmblocks.tokenizers.one_view import OneView


@tokenizers.register("{name}", source="where it comes from")
def {part}(view_px: Size, grid: Size, newline: bool = True) -> OneView:
    """What it does, in one line: here one padded view, its cells row by row, then a newline."""
    return OneView(view_px, grid, "padded", newline)
'''

BACKBONE = '''\
from mmblocks.backbones.causal_lm import CausalLM
from mmblocks.components import backbones


@backbones.register("{name}", source="where it comes from", tiny={{"dim": 32, "depth": 2}})
def {part}(dim: int = 256, depth: int = 6, heads: int = 4, vocab_size: int = 640) -> CausalLM:
    """What it is, in one line."""
    return CausalLM("llama", vocab_size=vocab_size, dim=dim, depth=depth, heads=heads, mlp_dim=3 * dim)
'''

PARTS = {
    "encoder": (ENCODER, ", dim=16"),
    "projector": (PROJECTOR, ", expansion=2.0"),
    "pooling": (POOLING, ""),
    "tokenizer": (TOKENIZER, ""),
    "backbone": (BACKBONE, ", dim=32, depth=2"),
}
"""Kind -> the source of a component, and settings that make it small for its test."""
