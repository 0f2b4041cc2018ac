"""Bytes through a patch convolution are what normalised pixels are, in every type, forward and backward."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from mmblocks.components import encoders
from mmblocks.encoders.clip import CLIP
from mmblocks.encoders.patches import BytePixels, PatchConv, PixelReadTracker, extract_patches, to_byte_pixels
from mmblocks.errors import ConfigError
from mmblocks.ops.attention import NAME

GREY = ((0.5,) * 3, (0.5,) * 3)
COLOURS = {"grey": GREY, "clip": (CLIP.pixel_mean, CLIP.pixel_std)}
TAKES_BYTES = {"blip2_vit", "clip", "dinov2", "dinov3", "hf_vision", "siglip", "timm_vit"}


def tiny(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return encoders.build({"name": name, **encoders[name].tiny, **settings})


def picture(views: int = 2, height: int = 30, width: int = 44) -> Tensor:
    """Noise on surfaces, as images are: what neighbours share is most of it."""
    surface = torch.randint(0, 200, (views, 3, 1, 1))
    return (surface + torch.randint(0, 56, (views, 3, height, width))).to(torch.uint8)


def normalised(pixels: Tensor, colours: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in colours)
    return ((pixels.double() / 255 - mean) / std).to(dtype)


def pair(colours: Any, dtype: torch.dtype, *, bias: bool = True) -> tuple[nn.Conv2d, PatchConv]:
    """A convolution over normalised pixels, and one with copies of its weights that reads bytes."""
    conv = nn.Conv2d(3, 96, kernel_size=14, stride=14, bias=bias).to(dtype)
    return conv, PatchConv.from_conv(copy.deepcopy(conv), *colours)


def as_bytes(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """What a tower's convolution meets: bytes cast to the type of its weights."""
    return to_byte_pixels(pixels).to(dtype)


def error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("colours", COLOURS.values(), ids=COLOURS)
def test_bytes_give_features_and_gradients_of_normalised_pixels(
    colours: Any, bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    conv, reader = pair(colours, dtype, bias=bias)
    pixels = picture()
    want, got = conv(normalised(pixels, colours, dtype)), reader(as_bytes(pixels, dtype))
    assert got.shape == want.shape == (2, 96, 2, 3)
    assert error(got, want.double()) < tolerance
    upstream = torch.randn_like(want)
    want.backward(upstream)
    got.backward(upstream)
    for (name, w), (_, g) in zip(conv.named_parameters(), reader.named_parameters(), strict=True):
        assert w.grad is not None
        assert g.grad is not None
        assert error(g.grad, w.grad.double()) < tolerance, name


@pytest.mark.parametrize(
    ("colours", "dtype"),
    [(GREY, torch.bfloat16), (COLOURS["clip"], torch.bfloat16), (GREY, torch.float16)],
    ids=["grey", "clip", "grey in float16"],
)
def test_in_half_precision_bytes_are_nearer_to_the_truth_than_normalised_pixels(
    colours: Any, dtype: torch.dtype
) -> None:
    conv, reader = pair(colours, dtype)
    pixels = picture(views=16)
    want = conv.double()(normalised(pixels, colours))
    conv.to(dtype)
    assert error(reader(as_bytes(pixels, dtype)), want) < error(conv(normalised(pixels, colours, dtype)), want)


def test_a_picture_of_the_mean_colour_gives_the_bias_exactly() -> None:
    levels = (120, 7, 255)
    _, reader = pair((tuple(level / 255 for level in levels), CLIP.pixel_std), torch.bfloat16)
    pixels = torch.tensor(levels, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 14, 28)
    assert reader.bias is not None
    assert torch.equal(reader(as_bytes(pixels, torch.bfloat16)), reader.bias.view(1, -1, 1, 1).expand(1, 96, 1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_in_its_type_by_weights_as_it_rounds_them(dtype: torch.dtype) -> None:
    conv, reader = pair(COLOURS["clip"], dtype)
    pixels = picture(views=16)
    want = conv.double()(normalised(pixels, COLOURS["clip"]))
    conv.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got, peer = reader(as_bytes(pixels, dtype)), conv(normalised(pixels, COLOURS["clip"], dtype))
    assert got.dtype == torch.bfloat16
    assert error(got, want) < 1.01 * error(
        peer, want
    )  # both round fp32 weights; luck of one draw decides which is less


def test_patches_are_read_row_by_row_channel_by_channel_less_their_level() -> None:
    place = torch.arange(5 * 7, dtype=torch.uint8).view(5, 7)
    patches = extract_patches(
        torch.stack([place, place + 100, place + 200])[None], (2, 3), (0, 100, 190), torch.float32
    )
    first, last = [0, 1, 2, 7, 8, 9], [17, 18, 19, 24, 25, 26]
    assert patches.shape == (4, 18)
    assert patches[0].tolist() == first + first + [n + 10 for n in first]
    assert patches[3].tolist() == last + last + [n + 10 for n in last]


def test_pixels_beyond_the_last_whole_patch_are_not_read() -> None:
    _, reader = pair(GREY, torch.float32)
    pixels = picture()
    framed = pixels.clone()
    framed[..., 28:, :], framed[..., :, 42:] = 0, 255
    assert torch.equal(reader(as_bytes(pixels, torch.float32)), reader(as_bytes(framed, torch.float32)))


def test_only_a_cast_of_bytes_is_bytes() -> None:
    pixels = to_byte_pixels(picture())
    assert isinstance(pixels.to(torch.bfloat16).to(torch.float32), BytePixels)
    assert not any(
        isinstance(x, BytePixels) for x in (pixels[0], pixels + 1, pixels.float().mean(), to_byte_pixels(torch.ones(1)))
    )


def test_which_encoders_take_bytes() -> None:
    plain = [name for name in encoders if not encoders.find_info(name).preset_of]
    assert {name for name in plain if getattr(tiny(name), "takes_bytes", False)} == TAKES_BYTES


@pytest.mark.parametrize("name", sorted(TAKES_BYTES))
def test_an_encoder_reads_bytes_as_normalised_pixels_in_float64(name: str) -> None:
    encoder = tiny(name).double()
    pixels = picture(2, *encoder.view_px)
    want = encoder(normalised(pixels, (encoder.pixel_mean, encoder.pixel_std)))
    torch.testing.assert_close(encoder(pixels), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["tiny_conv", "fused", "timm_features"])
def test_an_encoder_that_does_not_take_bytes_refuses_them(name: str) -> None:
    encoder = tiny(name)
    with pytest.raises(ConfigError, match=rf"encoder '{name}' takes normalised pixels.*these are uint8"):
        encoder(picture(1, *encoder.view_px))


def test_a_convolutional_stem_of_timm_is_not_given_bytes() -> None:
    with torch.device("meta"):
        assert not encoders.build("timm_vit", model_name="vitamin_small_224").takes_bytes


def test_names_of_tensors_stay_and_nothing_is_saved_beside_them() -> None:
    encoder = tiny("siglip")
    conv = encoder.vision_model.embeddings.patch_embedding
    assert isinstance(conv, PatchConv)
    assert set(conv.state_dict()) == {"weight", "bias"}
    assert not list(conv.buffers())


def test_weights_that_change_in_place_are_read_as_they_are_now() -> None:
    encoder, pixels = tiny("clip"), picture(1, 30, 30)
    before = encoder(pixels)
    averaged = copy.deepcopy(encoder)
    with torch.no_grad():
        averaged.vision_model.embeddings.patch_embedding.weight.mul_(1.5)
    want = averaged(normalised(pixels, COLOURS["clip"], torch.float32))
    torch.testing.assert_close(averaged(pixels), want, rtol=0, atol=1e-5)  # fp32 sums in another order
    assert torch.equal(encoder(pixels), before)


def test_recomputation_outside_of_the_encoder_still_knows_bytes() -> None:
    encoder, pixels = tiny("siglip"), picture(1, 30, 30)
    encoder(pixels).sum().backward()
    grads = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    tower = encoder.vision_model.forward
    encoder.vision_model.forward = lambda **inputs: checkpoint(tower, **inputs, use_reentrant=False)
    encoder(pixels).sum().backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(encoder.parameters(), grads, strict=True))


def test_a_convolution_of_bytes_compiles_whole() -> None:
    _, reader = pair(COLOURS["clip"], torch.float32)
    compiled = torch.compile(lambda x: reader(as_bytes(x, torch.float32)), backend="aot_eager", fullgraph=True)
    pixels = picture()
    got, want = compiled(pixels), reader(as_bytes(pixels, torch.float32))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_sharded_encoder_reads_bytes() -> None:
    plain, pixels = tiny("siglip"), picture(2, 30, 30)
    sharded = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (1,))
    for block in sharded.vision_model.encoder.layers:
        fully_shard(block, mesh=mesh)
    model: Any = fully_shard(nn.Sequential(sharded, nn.Flatten(), nn.Softmax(-1)), mesh=mesh)
    want, got = nn.Sequential(plain, nn.Flatten(), nn.Softmax(-1))(pixels), model(pixels)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    want[:, 0].sum().backward()
    got[:, 0].sum().backward()
    weight, shard = (e.vision_model.embeddings.patch_embedding.weight for e in (plain, sharded))
    torch.testing.assert_close(shard.grad.full_tensor(), weight.grad)


# Towers of others ---------------------------------------------------------------------------------------------------


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, kernel_size=2, stride=2)
        self.overlapping = nn.Conv2d(3, 4, kernel_size=3, stride=2)

    def casts(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        assert x.device == self.conv.weight.device
        return self.conv(x.to(self.conv.weight.dtype)) + x.size(0)

    def scales(self, x: Tensor) -> Tensor:
        return self.conv(x / 255)

    def pads(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))

    def reads_twice(self, x: Tensor) -> Tensor:
        return self.conv(x) + x.mean()

    def overlaps(self, x: Tensor) -> Tensor:
        return self.overlapping(x)


@pytest.mark.parametrize(
    ("way", "reader"), [("casts", "conv"), ("scales", ""), ("pads", ""), ("reads_twice", ""), ("overlaps", "")]
)
def test_bytes_are_for_towers_that_only_cast_pixels_before_one_patch_convolution(way: str, reader: str) -> None:
    tower = Tower()
    with PixelReadTracker(tower) as readers:
        getattr(tower, way)(torch.ones(1, 3, 4, 4).as_subclass(BytePixels))
    assert readers.sole_reader == reader
    assert not tower.conv._forward_pre_hooks


@pytest.mark.parametrize("name", ["blip2_vit", "clip", "dinov2", "dinov3", "hf_vision", "siglip"])
def test_towers_of_transformers_attend_through_the_attention_op(name: str) -> None:
    encoder = tiny(name)
    tower = encoder.vision_model if hasattr(encoder, "vision_model") else encoder.tower
    assert tower.config._attn_implementation == NAME
