"""Conformance checks of vision encoders."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmblocks.components import ByteEncoder, VisionEncoder, has_capability
from mmblocks.errors import MMBlocksError
from mmblocks.shapes import Size
from mmblocks.testing.conformance import Subject, check_that

FACTS = ("dim", "view_px", "grid", "spatial", "squash", "pixel_mean", "pixel_std")
OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


def check_protocol(subject: Subject) -> None:
    """It has dim, view_px, grid, spatial, squash, pixel_mean and pixel_std, as plain numbers."""
    encoder = subject.build()
    missing = [fact for fact in FACTS if not hasattr(encoder, fact)]
    check_that(not missing, f"It lacks {', '.join(missing)}.")
    check_that(isinstance(encoder, VisionEncoder), "It cannot be called.")
    for fact in ("view_px", "grid"):
        check_that(isinstance(getattr(encoder, fact), Size), f"{fact} is {getattr(encoder, fact)!r}, not a Size.")
    whole = all(type(n) is int for n in (encoder.dim, *encoder.view_px, *encoder.grid))
    check_that(whole, "dim, view_px and grid are not plain integers.")
    plain = all(type(x) is float for x in (*encoder.pixel_mean, *encoder.pixel_std))
    check_that(plain, "pixel_mean and pixel_std are not plain floats.")


def check_meta_device(subject: Subject) -> None:
    """It can be built and run on the meta device, and has the same sizes there."""
    with torch.device("meta"):
        blueprint = subject.build()
        seen = tuple(blueprint(torch.empty(2, 3, *blueprint.view_px)).shape)
    check_that(all(p.is_meta for p in blueprint.parameters()), "Some parameters are not on the meta device.")
    here = subject.build()
    differ = [fact for fact in FACTS if getattr(blueprint, fact) != getattr(here, fact)]
    check_that(not differ, f"{', '.join(differ)} differ from those of one with weights.")
    check_that(seen == (2, *here.grid, here.dim), f"It gives {seen} there.")


def check_output_grid(subject: Subject) -> None:
    """Pixels (views, 3, view_px) become (views, rows, columns, dim)."""
    encoder = subject.build()
    for views in (1, 3):
        seen, stated = tuple(encoder(make_pixels(encoder, views)).shape), (views, *encoder.grid, encoder.dim)
        check_that(seen == stated, f"It states {stated} and gives {seen}.")


@torch.no_grad()
def check_spatial_order(subject: Subject) -> None:
    """With `spatial`, a change in half of the image shows most in that half of the grid; without, the grid is one row."""
    encoder = subject.build().eval()
    if not encoder.spatial:
        return check_that(encoder.grid.height == 1, f"It has spatial=False and gives {encoder.grid} cells.")
    pixels = make_pixels(encoder, 8)
    for half, opposite in OPPOSITE.items():
        changed = pixels.clone()
        _select_half(changed, half, rows=2)[:] = _select_half(pixels.roll(1, 0), half, rows=2)
        difference = (encoder(changed) - encoder(pixels)).norm(dim=-1)
        near, far = (_select_half(difference, side, rows=1).mean() for side in (half, opposite))
        check_that(bool(near > far), f"A change at the {half} shows more at the {opposite}.")


def check_view_isolation(subject: Subject) -> None:
    """A view gives the same features in any batch, in training too."""
    encoder = subject.build().train()
    x, order = make_pixels(encoder, 4), [2, 0, 3, 1]
    together = encoder(x)
    apart = max(
        (encoder(x[order]) - together[order]).abs().max().item(), (encoder(x[1:2]) - together[1:2]).abs().max().item()
    )
    check_that(apart <= 1e-5, f"In another batch they are {apart:.2e} away.")


def check_gradients(subject: Subject) -> None:
    """Gradients reach every parameter; only biases may have zero gradients (those of keys in attention do)."""
    encoder = subject.build()
    encoder(make_pixels(encoder, 2)).square().sum().backward()
    named = dict(encoder.named_parameters())
    silent = [n for n, p in named.items() if p.grad is None or (p.ndim > 1 and not p.grad.abs().sum() > 0)]
    check_that(not silent, f"None reaches {', '.join(silent)}.")


def check_bfloat16(subject: Subject) -> None:
    """In bfloat16 it takes float pixels and gives finite bfloat16."""
    encoder = subject.build().to(torch.bfloat16)
    features = encoder(make_pixels(encoder, 2))
    check_that(features.dtype == torch.bfloat16, f"It gives {features.dtype}.")
    check_that(bool(features.isfinite().all()), "Some numbers are not finite.")


@torch.no_grad()
def check_byte_input(subject: Subject) -> None:
    """With `takes_bytes`, uint8 pixels give the features of (x / 255 - pixel_mean) / pixel_std."""
    encoder = subject.build().eval()
    if not has_capability(encoder, ByteEncoder):
        return
    pixels = torch.randint(0, 256, (2, 3, *encoder.view_px), generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(fact).view(3, 1, 1) for fact in (encoder.pixel_mean, encoder.pixel_std))
    want = encoder((pixels / 255 - mean) / std)
    apart = ((encoder(pixels.to(torch.uint8)) - want).norm() / want.norm()).item()
    check_that(
        apart <= 1e-4, f"They are {apart:.2e} away, relatively."
    )  # fp32 sums in another order, through all blocks


def check_state_dict(subject: Subject) -> None:
    """Its state dict makes another instance equal, one built on the meta device too."""
    encoder, other = subject.build(), subject.build()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.01 * torch.randn_like(p))
    with torch.device("meta"):
        blueprint = subject.build()
    other.load_state_dict(encoder.state_dict(), strict=True)
    blueprint.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    x = make_pixels(encoder, 2)
    check_that(torch.equal(encoder(x), other(x)), "The copy gives other numbers.")
    check_that(torch.equal(encoder(x), blueprint(x)), "The copy built on meta gives other numbers.")


def check_size_refusal(subject: Subject) -> None:
    """Pixels of another size are refused, with the size that it takes."""
    encoder = subject.build()
    refusal = _find_refusal(encoder, torch.zeros(1, 3, encoder.view_px.height + 1, encoder.view_px.width))
    check_that(f"(views, 3, {encoder.view_px.height}" in refusal, f"One row too many gives: {refusal or 'no error'}.")


def check_missing_weights_refusal(subject: Subject) -> None:
    """`load_pretrained` without a checkpoint is refused, with the setting to write."""
    encoder = subject.build()
    if getattr(encoder, "checkpoint", None) is not None:
        return
    refusal = _find_refusal(encoder.load_pretrained)
    check_that("checkpoint" in refusal or "no published weights" in refusal, f"It says: {refusal or 'nothing'}.")


CHECKS = (
    check_protocol,
    check_meta_device,
    check_output_grid,
    check_spatial_order,
    check_view_isolation,
    check_gradients,
    check_bfloat16,
    check_byte_input,
    check_state_dict,
    check_size_refusal,
    check_missing_weights_refusal,
)


def make_pixels(encoder: VisionEncoder, views: int) -> Tensor:
    """(views, 3, *view_px) of noise, the same every time."""
    return torch.randn(views, 3, *encoder.view_px, generator=torch.Generator().manual_seed(1))


def _select_half(x: Tensor, half: str, rows: int) -> Tensor:
    """A view of half of `x`, whose axis `rows` goes down the image and whose next axis goes to the right."""
    axis = rows if half in ("top", "bottom") else rows + 1
    middle = x.shape[axis] // 2
    return x.narrow(axis, 0, middle) if half in ("top", "left") else x.narrow(axis, x.shape[axis] - middle, middle)


def _find_refusal(call: Callable[..., object], *arguments: object) -> str:
    """The error that a call raises; empty if it raises none."""
    try:
        call(*arguments)
    except MMBlocksError as refusal:
        return str(refusal)
    return ""
