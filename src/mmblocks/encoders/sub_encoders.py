"""What encoders made of encoders share: building and loading them, one view and one grid for all of them."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, Protocol

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import VisionEncoder, encoders
from mmblocks.encoders.patches import Colour, make_channels
from mmblocks.encoders.vit import raise_faults, require_view
from mmblocks.errors import CheckpointError, ConfigError, MMBlocksError
from mmblocks.faults import Fault
from mmblocks.registry import Spec, split_spec
from mmblocks.shapes import Size

Align = Literal["first", "finest", "coarsest"]


class SubEncoder(VisionEncoder, Protocol):
    """An encoder that is part of another."""

    def load_pretrained(self) -> None: ...


class JoinedEncoders(nn.Module):
    """Several encoders that see the same view, with their features on one grid of `cells`."""

    name: str
    """In the registry."""

    def __init__(self, members: tuple[Spec, ...], align: Align, squash: bool | None) -> None:
        super().__init__()
        built = build_sub_encoders(self.name, {f"members.{i}": spec for i, spec in enumerate(members)})
        require_side_by_side(self.name, members, built, squash)
        self.members = nn.ModuleList(built)
        self.dim: int = sum(member.dim for member in built)
        self.view_px = max((member.view_px for member in built), key=lambda view_px: view_px.area)
        choose = max if align == "finest" else min
        grids = [member.grid for member in built]
        self.cells = grids[0] if align == "first" else choose(grids, key=lambda grid: grid.area)
        self.pixel_mean, self.pixel_std = choose_shared_mean_std(built)
        self.squash: bool = built[0].squash if squash is None else squash

    def encode_members(self, pixels: Tensor) -> list[Tensor]:
        """(views, 3, *view_px) to (views, *cells, dim) of every member."""
        require_view(self.name, pixels, self.view_px)
        return [
            resize_to_grid(member(adapt_pixels(member, pixels, self.pixel_mean, self.pixel_std)), self.cells)  # type: ignore[arg-type]
            for member in self.members
        ]

    def load_pretrained(self) -> None:
        """Let every member read its own `checkpoint`."""
        load_sub_encoders(self.name, {f"members.{i}": member for i, member in enumerate(self.members)})  # type: ignore[dict-item]


def build_sub_encoders(name: str, specs: Mapping[str, Spec]) -> list[Any]:
    """The parts of the encoder `name` by their keys. Raises `ConfigError` with the faults of all of them."""
    built, causes = [], {}
    for key, spec in specs.items():
        try:
            built.append(encoders.build(spec))
        except MMBlocksError as cause:
            causes[key] = cause
    if causes:
        raise ConfigError(f"encoder {name!r}: {_join_causes(causes)}")
    return built


def load_sub_encoders(name: str, members: Mapping[str, SubEncoder]) -> None:
    """Let every member read its checkpoint. Raises one error with the faults of all of them."""
    causes: dict[str, MMBlocksError] = {}
    for key, member in members.items():
        try:
            member.load_pretrained()
        except MMBlocksError as cause:
            causes[key] = cause
    if causes:
        kind = ConfigError if all(isinstance(cause, ConfigError) for cause in causes.values()) else CheckpointError
        raise kind(f"encoder {name!r}: {_join_causes(causes)}")


def _join_causes(causes: Mapping[str, MMBlocksError]) -> str:
    return "\n  ".join(f"{key}: {cause}" for key, cause in causes.items())


def require_side_by_side(name: str, specs: Sequence[Spec], members: Sequence[SubEncoder], squash: bool | None) -> None:
    """Refuse members whose cells cannot show the same places of one image, with every reason."""
    labels = [f"members.{i} ({split_spec(spec)[0]!r})" for i, spec in enumerate(specs)]
    faults = []
    if len(members) < 2:
        faults.append(f"{len(members)} members; give two or more, or use the encoder itself")
    faults += [
        f"{label} has no image order (its grid is {member.grid}), so its tokens have no place beside another's; "
        "choose features that keep the grid"
        for label, member in zip(labels, members, strict=True)
        if not member.spatial
    ]
    if len({member.view_px.height / member.view_px.width for member in members}) > 1:
        views = ", ".join(f"{label} {member.view_px}" for label, member in zip(labels, members, strict=True))
        faults.append(f"views of different aspect cannot show the same image ({views}); choose views of one aspect")
    if squash is None and len({member.squash for member in members}) > 1:
        habits = (
            f"{label} {'squashes it' if member.squash else 'takes its middle'}"
            for label, member in zip(labels, members, strict=True)
        )
        faults.append(
            f"members disagree about an image that is not square ({', '.join(habits)}); "
            "write squash=true or squash=false to decide for all"
        )
    raise_faults(name, [Fault("", fault) for fault in faults])


def choose_shared_mean_std(members: Sequence[SubEncoder]) -> tuple[Colour, Colour]:
    """Mean and std of the joined encoder's pixels: the members' own where they agree, else the mean of their means and 1.

    The mean is also the colour around a padded image, so it should be close to every member's.
    """
    mean, std = members[0].pixel_mean, members[0].pixel_std
    if all((member.pixel_mean, member.pixel_std) == (mean, std) for member in members):
        return mean, std
    red, green, blue = (fmean(channel) for channel in zip(*(member.pixel_mean for member in members), strict=True))
    return (red, green, blue), (1.0, 1.0, 1.0)


def adapt_pixels(member: SubEncoder, pixels: Tensor, mean: Colour, std: Colour) -> Tensor:
    """Pixels normalised by `mean` and `std` at the member's own size and normalisation.

    Resized as torchvision does it to tensors (bicubic, antialiased), without clipping; in fp32.
    """
    seen = pixels
    if pixels.shape[-2:] != member.view_px:
        seen = F.interpolate(pixels.float(), size=tuple(member.view_px), mode="bicubic", antialias=True)
    if (member.pixel_mean, member.pixel_std) != (mean, std):
        mean_here, std_here, mean_there, std_there = (
            make_channels(values, pixels.device) for values in (mean, std, member.pixel_mean, member.pixel_std)
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
