"""Pixels read as the bytes they are stored as: mean and deviation become part of the patch convolution."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from mmblocks.compat import find_autocast_dtype

Colour = tuple[float, float, float]
METADATA_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "is_meta", "size", "dim"})
"""What a tower may ask of pixels before its convolution reads them."""


class BytePixels(Tensor):
    """Pixels from 0 to 255, in whatever type a tower casts them to. All but a cast of them is a plain tensor.

    Towers cast pixels to the type of their weights, which would hide what the numbers mean from the convolution.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func is Tensor.to else result


def to_byte_pixels(pixels: Tensor) -> Tensor:
    """uint8 pixels marked as bytes, others as they are."""
    return pixels.as_subclass(BytePixels) if pixels.dtype == torch.uint8 else pixels


class PatchConv(nn.Conv2d):
    """A patch convolution that takes normalised pixels and `Bytes`, for which it is conv((x / 255 - mean) / std).

    Bytes meet the weights in one matrix product over patches. Both factors are exact in every type but for the ratios
    of deviations: levels are whole numbers around the nearest level of the mean, and the first channel's 1 / (255 std)
    multiplies the product. What lies between mean and level is taken off the bias, from the weights as they were
    rounded. Nothing is kept between calls, so trained, loaded and averaged weights need no refresh.
    """

    pixel_mean: Colour
    pixel_std: Colour

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, mean: Colour, std: Colour) -> PatchConv:
        """The same convolution, with the same parameters, that reads bytes too."""
        assert is_patchwise(conv)
        with torch.device("meta"):
            same = cls(conv.in_channels, conv.out_channels, _to_pair(conv.kernel_size), _to_pair(conv.stride))
        same.weight, same.bias = conv.weight, conv.bias
        same.pixel_mean, same.pixel_std = mean, std
        return same

    def forward(self, input: Tensor) -> Tensor:
        """(views, 3, height, width) to (views, dim, rows, columns); pixels beyond the last whole patch are not read."""
        return self._from_bytes(input) if isinstance(input, BytePixels) else super().forward(input)

    def _from_bytes(self, pixels: Tensor) -> Tensor:
        size = _to_pair(self.kernel_size)
        rows = pixels.shape[2] // size[0]
        weight, bias = self._fold_normalisation(self._product_dtype(pixels.device))
        patches = extract_patches(pixels, size, self._mean_levels, weight.dtype)
        cells = torch.addmm(bias, patches, weight.t(), alpha=1 / (255 * self.pixel_std[0]))
        return rearrange(cells, "(v h w) d -> v d h w", v=pixels.shape[0], h=rows)

    @property
    def _mean_levels(self) -> tuple[int, ...]:
        """The whole level nearest to each channel's mean."""
        return tuple(round(255 * mean) for mean in self.pixel_mean)

    def _fold_normalisation(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(dim, 3 * height * width) and (dim,): weights relative to the first deviation, and the bias left over."""
        first = self.pixel_std[0]
        weight = self.weight
        if any(std != first for std in self.pixel_std):
            weight = torch.stack([weight[:, c] * (first / std) for c, std in enumerate(self.pixel_std)], dim=1)
        weight = weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        bias = torch.zeros_like(weight[:, 0, 0, 0], dtype=wide) if self.bias is None else self.bias.to(wide)
        for channel, (mean, level) in enumerate(zip(self.pixel_mean, self._mean_levels, strict=True)):
            sums = weight[:, channel].sum(dim=(1, 2), dtype=wide)
            bias = bias - sums * ((255 * mean - level) / (255 * first))
        return weight.flatten(1), bias.to(dtype)

    def _product_dtype(self, device: torch.device) -> torch.dtype:
        """That of the weights, or autocast's: casting is done here, since the bias depends on how weights were rounded."""
        casting = find_autocast_dtype(device.type)
        return self.weight.dtype if casting is None or self.weight.dtype == torch.float64 else casting


def extract_patches(pixels: Tensor, size: tuple[int, int], levels: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(views * rows * columns, 3 * height * width): whole patches less a level per channel."""
    height, width = size
    seen = pixels[..., : pixels.shape[2] // height * height, : pixels.shape[3] // width * width]
    cells = rearrange(seen, "v c (h p) (w q) -> v h w c p q", p=height, q=width)
    origin = torch.stack([torch.full((), level, dtype=dtype, device=pixels.device) for level in levels])
    patches = torch.empty(cells.shape, dtype=dtype, device=pixels.device).copy_(cells).sub_(origin.view(-1, 1, 1))
    return patches.flatten(0, 2).flatten(1)


def enable_byte_pixels(tower: nn.Module, name: str, mean: Colour, std: Colour) -> None:
    """Let the patch convolution of that name in a tower read bytes too; parameters and their names stay."""
    owner, _, leaf = name.rpartition(".")
    holder: Any = tower.get_submodule(owner)
    setattr(holder, leaf, PatchConv.from_conv(getattr(holder, leaf), mean, std))


def is_patchwise(module: nn.Module) -> bool:
    """Whether a module is a convolution of colours that reads every pixel once, patch by patch."""
    return (
        type(module) is nn.Conv2d
        and (module.in_channels, module.groups, module.dilation) == (3, 1, (1, 1))
        and module.kernel_size == module.stride
        and module.padding in ("valid", (0, 0))
    )


class PixelReadTracker(TorchFunctionMode):
    """Watches what a tower does with `Bytes` that it is given in the meantime, whatever device it is on."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self._tower = tower
        self._hooks: list[RemovableHandle] = []
        self._met: list[str] = []
        self._reads = 0

    @property
    def sole_reader(self) -> str:
        """The patch convolution through which alone the tower saw pixels; empty where there is none.

        A tower that does more with pixels than cast them, such as pad, resize or normalise them, has none.
        """
        return self._met[0] if len(self._met) == 1 and self._reads == 1 else ""

    def __enter__(self) -> PixelReadTracker:
        for name, module in self._tower.named_modules():
            if is_patchwise(module):
                self._hooks.append(module.register_forward_pre_hook(partial(self._record_reader, name)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _record_reader(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._met.extend(name for x in inputs if isinstance(x, BytePixels))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(getattr(func, "__self__", None), "__name__", func.__name__)  # x.shape is shape.__get__
        if any(isinstance(x, BytePixels) for x in args) and func is not Tensor.to and name not in METADATA_ATTRIBUTES:
            self._reads += 1
        return func(*args, **(kwargs or {}))


def _to_pair(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    return height, width
