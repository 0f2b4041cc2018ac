"""What encoders made of encoders share: building and loading their members, one view and one grid for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmblocks.components import encoders
from mmblocks.errors import CheckpointError, ConfigError, MMBlocksError
from mmblocks.registry import Spec, split_spec
from mmblocks.shapes import Size

Align = Literal["first", "finest", "coarsest"]
Colour = tuple[float, float, float]


def build_sub_encoders(name: str, specs: Mapping[str, Spec]) -> list[Any]:
    """The members of the encoder `name` by their keys. Raises `ConfigError` with the faults of all of them."""
    built, faults = [], []
    for key, spec in specs.items():
        try:
            built.append(encoders.build(spec))
        except MMBlocksError as cause:
            faults.append(f"{key}: {cause}")
    if faults:
        raise ConfigError(f"encoder {name!r}: " + "\n  ".join(faults))
    return built


def load_sub_encoders(name: str, members: Mapping[str, Any]) -> None:
    """Let every member read its checkpoint. Raises one error with what stood against each of them."""
    causes: dict[str, MMBlocksError] = {}
    for key, member in members.items():
        try:
            member.load_pretrained()
        except MMBlocksError as cause:
            causes[key] = cause
    if causes:
        kind = ConfigError if all(isinstance(cause, ConfigError) for cause in causes.values()) else CheckpointError
        raise kind(f"encoder {name!r}: " + "\n  ".join(f"{key}: {cause}" for key, cause in causes.items()))


def require_side_by_side(name: str, specs: Sequence[Spec], members: Sequence[Any], squash: bool | None) -> None:
    """Refuse members whose cells cannot stand for the same places of one image, with every reason."""
    called = [f"members.{i} ({split_spec(spec)[0]!r})" for i, spec in enumerate(specs)]
    faults = []
    if len(members) < 2:
        faults.append(f"{len(members)} members; give two or more, or use the encoder itself")
    faults += [
        f"{who} has no image order (its grid is {member.grid}), so its tokens have no place beside another's; "
        "choose features that keep the grid"
        for who, member in zip(called, members, strict=True)
        if not member.spatial
    ]
    if len({member.view_px.height / member.view_px.width for member in members}) > 1:
        views = ", ".join(f"{who} {member.view_px}" for who, member in zip(called, members, strict=True))
        faults.append(f"views of different aspect cannot show the same image ({views}); choose views of one aspect")
    if squash is None and len({member.squash for member in members}) > 1:
        ways = (
            f"{who} {'squashes it' if member.squash else 'takes its middle'}"
            for who, member in zip(called, members, strict=True)
        )
        faults.append(
            f"members disagree about an image that is not square ({', '.join(ways)}); "
            "write squash=true or squash=false to decide for all"
        )
    if faults:
        raise ConfigError(f"encoder {name!r}: " + "; ".join(faults) + ".")


def choose_shared_view(members: Iterable[Any]) -> Size:
    """The largest view: no member sees less than it could."""
    return max((member.view_px for member in members), key=lambda view_px: view_px.area)


def choose_shared_grid(members: Sequence[Any], align: Align) -> Size:
    """The grid that the cells of all members are brought to."""
    if align == "first":
        return members[0].grid
    choose = max if align == "finest" else min
    return choose((member.grid for member in members), key=lambda grid: grid.area)


def choose_shared_mean_std(members: Sequence[Any]) -> tuple[Colour, Colour]:
    """Mean and std under which pixels arrive: the members' own where they agree, else the middle of their means and 1.

    The mean is also the colour that fills the sheet around a padded image, so it lies close to every member's.
    """
    mean, std = members[0].pixel_mean, members[0].pixel_std
    if all((member.pixel_mean, member.pixel_std) == (mean, std) for member in members):
        return mean, std
    red, green, blue = (fmean(channel) for channel in zip(*(member.pixel_mean for member in members), strict=True))
    return (red, green, blue), (1.0, 1.0, 1.0)


def adapt_pixels(member: Any, pixels: Tensor, mean: Colour, std: Colour) -> Tensor:
    """Pixels normalised by `mean` and `std` at the member's own size and normalisation.

    Resized as torchvision does it to tensors (bicubic, antialiased), without clipping; in fp32.
    """
    seen = pixels
    if pixels.shape[-2:] != member.view_px:
        seen = F.interpolate(pixels.float(), size=tuple(member.view_px), mode="bicubic", antialias=True)
    if (member.pixel_mean, member.pixel_std) != (mean, std):
        mean_here, std_here, mean_there, std_there = (
            torch.tensor(values, device=pixels.device, dtype=torch.float32).view(3, 1, 1)
            for values in (mean, std, member.pixel_mean, member.pixel_std)
        )
        seen = (seen.float() * std_here + (mean_here - mean_there)) / std_there
    return seen.to(pixels.dtype)


def resize_to_grid(features: Tensor, grid: Size) -> Tensor:
    """(views, h, w, dim) to (views, *grid, dim), read bilinearly between the centres of cells; in fp32."""
    if features.shape[1:3] == grid:
        return features
    planes = rearrange(features.float(), "v h w d -> v d h w")
    resized = F.interpolate(planes, size=tuple(grid), mode="bilinear", align_corners=False)
    return rearrange(resized, "v d h w -> v h w d").to(features.dtype)
