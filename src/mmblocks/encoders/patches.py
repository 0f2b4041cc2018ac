"""Pixels read as bytes: mean and standard deviation become part of the patch convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
"""What a tower may read of pixels before its convolution reads them."""


class BytePixels(Tensor):
    """Pixels from 0 to 255, in whatever dtype a tower casts them to. The result of any other function is a plain tensor.

    Towers cast pixels to the dtype of their weights; the class tells the convolution that they are bytes.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func is Tensor.to else result


def to_byte_pixels(pixels: Tensor) -> Tensor:
    """uint8 pixels marked as bytes, others as they are."""
    return pixels.as_subclass(BytePixels) if pixels.dtype == torch.uint8 else pixels


class PatchConv(nn.Conv2d):
    """A patch convolution that takes normalised pixels and `BytePixels`, for which it is conv((x / 255 - mean) / std).

    For bytes it is one matrix product over patches. Both factors are exact in every dtype but for the ratios of
    deviations: pixels become whole numbers by subtracting the level nearest to the mean, and the first channel's
    1 / (255 std) multiplies the product. The rest of the mean is subtracted from the bias, by the weights as they were
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
        if not isinstance(input, BytePixels):
            return super().forward(input)
        size, rows = _to_pair(self.kernel_size), input.shape[2] // self.kernel_size[0]
        # In the dtype of the weights, or autocast's: the bias depends on how weights were rounded.
        dtype = find_autocast_dtype(input.device.type)
        if dtype is None or self.weight.dtype == torch.float64:
            dtype = self.weight.dtype
        weight, bias = self._fold_normalisation(dtype)
        patches = extract_patches(input, size, self._mean_levels, weight.dtype)
        cells = torch.addmm(bias, patches, weight.t(), alpha=1 / (255 * self.pixel_std[0]))
        return rearrange(cells, "(v h w) d -> v d h w", v=input.shape[0], h=rows)

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


def extract_patches(pixels: Tensor, size: tuple[int, int], levels: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(views * rows * columns, 3 * height * width): whole patches minus a level for each channel."""
    height, width = size
    pixels = pixels[..., : pixels.shape[2] // height * height, : pixels.shape[3] // width * width]
    cells = rearrange(pixels, "v c (h p) (w q) -> v h w c p q", p=height, q=width)
    origin = make_channels(levels, pixels.device, dtype)
    patches = torch.empty(cells.shape, dtype=dtype, device=pixels.device).copy_(cells).sub_(origin)
    return patches.flatten(0, 2).flatten(1)


def make_channels(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(channels, 1, 1) with a value for each channel, filled on the device: nothing is copied to it."""
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values]).view(-1, 1, 1)


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
    """Records how a tower reads `BytePixels` while this is entered, on any device."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self._tower = tower
        self._hooks: list[RemovableHandle] = []
        self._readers: list[str] = []
        self._reads = 0

    @property
    def sole_reader(self) -> str:
        """The patch convolution that alone read the pixels; empty where there is none.

        A tower that does more with pixels than cast them, such as pad, resize or normalise them, has none.
        """
        return self._readers[0] if len(self._readers) == 1 and self._reads == 1 else ""

    def __enter__(self) -> PixelReadTracker:
        for name, module in self._tower.named_modules():
            if is_patchwise(module):
                self._hooks.append(module.register_forward_pre_hook(partial(self._record_reader, name)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _record_reader(self, name: str, _: nn.Module, inputs: tuple[object, ...]) -> None:
        self._readers.extend(name for x in inputs if isinstance(x, BytePixels))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        name = getattr(getattr(func, "__self__", None), "__name__", func.__name__)  # x.shape is shape.__get__
        if any(isinstance(x, BytePixels) for x in args) and func is not Tensor.to and name not in METADATA_ATTRIBUTES:
            self._reads += 1
        return func(*args, **(kwargs or {}))


def _to_pair(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    return height, width
