"""Laws that every registered vision encoder obeys, asked with its `tiny` settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmblocks.components import VisionEncoder, encoders
from mmblocks.shapes import Size

COMPONENTS = [name for name in encoders if encoders.about(name).of is None]
FACTS = ("dim", "view_px", "grid", "spatial", "squash", "pixel_mean", "pixel_std")

every_encoder = pytest.mark.parametrize("name", COMPONENTS)


def tiny(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return encoders.build({"name": name, **encoders[name].tiny, **settings})


def pictures(encoder: VisionEncoder, views: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(views, 3, *encoder.view_px, generator=generator)


def facts(encoder: VisionEncoder) -> dict[str, Any]:
    return {fact: getattr(encoder, fact) for fact in FACTS}


@every_encoder
def test_it_keeps_the_protocol(name: str) -> None:
    encoder = tiny(name)
    assert isinstance(encoder, VisionEncoder)
    assert isinstance(encoder.view_px, Size)
    assert isinstance(encoder.grid, Size)
    assert all(type(n) is int for n in (encoder.dim, *encoder.view_px, *encoder.grid))
    assert all(type(x) is float for x in (*encoder.pixel_mean, *encoder.pixel_std))


@every_encoder
def test_its_facts_are_known_without_memory_for_weights(name: str) -> None:
    with torch.device("meta"):
        blueprint = tiny(name)
    assert all(p.is_meta for p in blueprint.parameters())
    assert facts(blueprint) == facts(tiny(name))


@every_encoder
@pytest.mark.parametrize("views", [1, 3])
def test_its_output_has_the_shape_it_states(name: str, views: int) -> None:
    encoder = tiny(name)
    assert encoder(pictures(encoder, views)).shape == (views, *encoder.grid, encoder.dim)


@every_encoder
def test_its_shape_can_be_asked_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        blueprint = tiny(name)
        assert blueprint(torch.empty(2, 3, *blueprint.view_px)).shape == (2, *blueprint.grid, blueprint.dim)


@every_encoder
@pytest.mark.parametrize("half", ["top", "bottom", "left", "right"])
@torch.no_grad()
def test_what_changes_in_half_of_the_picture_shows_in_that_half_of_the_grid(name: str, half: str) -> None:
    encoder = tiny(name).eval()
    assert encoder.spatial
    seen = pictures(encoder, 8)
    changed = seen.clone()
    part(changed, half, rows=2)[:] = part(seen.roll(1, 0), half, rows=2)
    difference = (encoder(changed) - encoder(seen)).norm(dim=-1)
    opposite = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}[half]
    assert part(difference, half, rows=1).mean() > part(difference, opposite, rows=1).mean()


def part(x: Tensor, half: str, rows: int) -> Tensor:
    """A view of half of `x`, whose axis `rows` goes down the picture and whose next axis goes to the right."""
    axis = rows if half in ("top", "bottom") else rows + 1
    middle = x.shape[axis] // 2
    return x.narrow(axis, 0, middle) if half in ("top", "left") else x.narrow(axis, x.shape[axis] - middle, middle)


@every_encoder
def test_a_view_is_the_same_in_any_batch(name: str) -> None:
    encoder = tiny(name).train()
    x = pictures(encoder, 4)
    together, order = encoder(x), [2, 0, 3, 1]
    # fp32: matrix products over more rows may sum in another order
    torch.testing.assert_close(encoder(x[order]), together[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder(x[1:2]), together[1:2], rtol=0, atol=1e-5)


@every_encoder
def test_gradients_reach_every_parameter(name: str) -> None:
    encoder = tiny(name)
    encoder(pictures(encoder, 2)).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
    # The bias of keys shifts all scores of a query alike, so its gradient is zero by nature.
    assert [n for n, p in encoder.named_parameters() if p.ndim > 1 and not p.grad.abs().sum() > 0] == []


@every_encoder
def test_it_runs_in_bfloat16_on_float_pixels(name: str) -> None:
    encoder = tiny(name).to(torch.bfloat16)
    features = encoder(pictures(encoder, 2))
    assert features.dtype == torch.bfloat16
    assert features.isfinite().all()


@every_encoder
def test_its_state_dict_makes_another_instance_equal(name: str) -> None:
    encoder, other = tiny(name), tiny(name)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.01 * torch.randn_like(p))
    x = pictures(encoder, 2)
    assert not torch.equal(encoder(x), other(x))
    other.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(encoder(x), other(x))


@every_encoder
def test_weights_can_be_given_to_an_instance_built_on_the_meta_device(name: str) -> None:
    encoder = tiny(name)
    with torch.device("meta"):
        blueprint = tiny(name)
    blueprint.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    x = pictures(encoder, 2)
    assert torch.equal(blueprint(x), encoder(x))


@every_encoder
def test_a_view_of_another_size_is_refused(name: str) -> None:
    encoder = tiny(name)
    with pytest.raises(ValueError, match=rf"takes pixels \(views, 3, {encoder.view_px.height}, "):
        encoder(torch.zeros(1, 3, encoder.view_px.height + 1, encoder.view_px.width))


@every_encoder
def test_pretrained_weights_without_a_source_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"encoder '{name}'.*(checkpoint|no published weights)"):
        tiny(name).load_pretrained()
