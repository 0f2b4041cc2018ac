"""What the ViT encoders share: which blocks are needed, and strict loading of their weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmblocks.encoders.patches import to_byte_pixels
from mmblocks.errors import CheckpointError, ConfigError, MMBlocksError
from mmblocks.faults import Fault
from mmblocks.ops import attention
from mmblocks.pretrained import convert_checkpoint_errors, read_config_entries, read_model
from mmblocks.shapes import Size

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOWER_OF_A_WHOLE_MODEL = r"(model\.)?vision_tower\."
"""What stands before a tower's names in a vision-language model of transformers."""
Layer = int | tuple[int, ...]
"""The block whose output is taken, counted as transformers' hidden_states; several stand side by side in the channels."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CONFIG_KEYS = {  # our setting -> its name in a transformers config.json
    "image_px": "image_size",
    "trained_px": "image_size",
    "patch_px": "patch_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "swiglu": "use_swiglu_ffn",
    "gated": "use_gated_mlp",
    "registers": "num_register_tokens",
    "hidden_act": "hidden_act",
    "norm_eps": "layer_norm_eps",
}


def require_vit_sizes(
    name: str, *, image_px: int, patch_px: int, dim: int, depth: int, heads: int, layer: Layer
) -> None:
    """Refuse sizes that make no vision transformer, with every fault at once."""
    faults = []
    if patch_px < 1 or image_px < patch_px:
        faults.append(Fault("", f"image_px={image_px} holds no whole patch of patch_px={patch_px}"))
    if heads < 1 or dim % heads:
        faults.append(Fault("", f"dim={dim} is not a multiple of heads={heads}"))
    if depth < 1:
        faults.append(Fault("depth", f"depth={depth} is no number of blocks; write 1 or more"))
    elif fault := find_layer_fault(layer, depth):
        faults.append(Fault("layer", fault))
    raise_faults(name, faults)


def raise_faults(name: str, faults: Sequence[Fault]) -> None:
    """Raise `ConfigError` with all faults of an encoder's settings, if there are any.

    Their keys are settings, or empty where any of several can be changed.
    """
    if faults:
        text = f"encoder {name!r}: {'; '.join(fault.message for fault in faults)}."
        raise ConfigError(text, settings=[fault.key for fault in faults if fault.key], faults=faults)


def count_blocks(layer: Layer, depth: int) -> int:
    """How many blocks must run for transformers' hidden_states[layer], where entry 0 stands before the first block."""
    return max(list_state_indices(layer, depth))


def list_state_indices(layer: Layer, depth: int) -> tuple[int, ...]:
    """`layer` as entries of hidden_states, none below 0, in the order given."""
    assert not find_layer_fault(layer, depth)
    layers = (layer,) if isinstance(layer, int) else layer
    return tuple(n if n >= 0 else depth + 1 + n for n in layers)


def count_channels(dim: int, layer: Layer) -> int:
    """Channels of the features: those of every layer side by side."""
    return dim if isinstance(layer, int) else dim * len(layer)


def find_layer_fault(layer: Layer, depth: int) -> str:
    """Why `layer` is not the output of some of `depth` blocks; empty when it is.

    Entry 0, the embeddings before the first block, may only stand beside others.
    """
    if isinstance(layer, int):
        if 1 <= layer <= depth or -depth <= layer <= -1:
            return ""
        return f"layer={layer} names no block; with {depth} blocks choose 1 to {depth} or {-depth} to -1"
    wrong = [n for n in layer if not -depth - 1 <= n <= depth]
    if not wrong and any(n not in (0, -depth - 1) for n in layer):
        return ""
    what = f"{', '.join(map(str, wrong))} of it do not exist" if wrong else "it names no block"
    return f"layer={layer}: {what}; with {depth} blocks choose from 0 (before the first) to {depth} or {-depth} to -1"


def compute_states(
    tower: Callable[..., Any], pixels: Tensor, indices: tuple[int, ...], norm: nn.Module | None = None
) -> Tensor:
    """(views, tokens, channels) of a transformers tower that ends with the last block that is needed.

    The last state is the tower's output; several states stand side by side, each after `norm`. uint8 pixels are read as
    bytes.
    """
    pixels = to_byte_pixels(pixels)
    if len(indices) == 1:
        return tower(pixel_values=pixels).last_hidden_state
    hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    return torch.cat([hidden[i] if norm is None else norm(hidden[i]) for i in indices], dim=-1)


def require_view(name: str, pixels: Tensor, view_px: Size, *, bytes_too: bool = False) -> None:
    """Refuse pixels of another size than the encoder's view: position embeddings are not interpolated.

    uint8 pixels are refused, too, unless the encoder takes `bytes_too`: they would be read as normalised pixels.
    """
    if pixels.dtype == torch.uint8 and not bytes_too:
        raise ConfigError(
            f"encoder {name!r} takes normalised pixels, (x / 255 - pixel_mean) / pixel_std, and these are uint8."
        )
    if pixels.shape[1:] != (3, *view_px):
        raise ConfigError(
            f"encoder {name!r} takes pixels (views, 3, {view_px.height}, {view_px.width}), not {tuple(pixels.shape)}."
        )


def make_checkpoint_error(name: str, example: str) -> ConfigError:
    """The error for pretrained weights without a checkpoint."""
    return ConfigError(
        f"encoder {name!r}: pretrained weights need a checkpoint, but checkpoint is None; "
        f"set encoder.checkpoint to a local folder or a hub name such as {example!r}."
    )


def share_attention(tower: PreTrainedModel) -> None:
    """Let a transformers tower attend through `mmblocks.ops.attention`, where its family supports attention backends."""
    if tower._supports_attention_backend:
        tower.set_attn_implementation(attention.register())


def fill_position_ids(tower: nn.Module) -> None:
    """Give a tower built on the meta device its position numbers, which no checkpoint holds, if it has any."""
    embeddings: Any = tower.embeddings
    if (position_ids := getattr(embeddings, "position_ids", None)) is not None and position_ids.is_meta:
        embeddings.position_ids = torch.arange(embeddings.num_positions, device="cpu").unsqueeze(0)


def refill_buffers(part: nn.Module, device: torch.device, make: Callable[[], nn.Module]) -> None:
    """Replace buffers of `part` that are still on meta, because no checkpoint holds them, by those of a fresh one.

    `device` is that of the weights; nothing is done while that is meta too.
    """
    missing = [name for name, buffer in part.named_buffers() if buffer.is_meta]
    if not missing or device.type == "meta":
        return
    with torch.random.fork_rng(devices=[]), device:
        fresh = make()
    for name in missing:
        owner, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(owner), leaf, fresh.get_buffer(name))


def freeze_batch_norm(tower: nn.Module) -> None:
    """Keep batch normalisation at the statistics it was trained with, so that no view depends on its batch."""
    for module in tower.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.enable_grad()
def find_unused_parts(tower: nn.Module, features: Tensor) -> list[str]:
    """Children and single parameters of a tower on meta that do not affect its features: poolers, heads, mask tokens."""
    features.sum().backward()
    unused = {name for name, p in tower.named_parameters() if p.grad is None}
    used = [name for name, _ in tower.named_parameters() if name not in unused]
    children = [
        name
        for name, child in tower.named_children()
        if any(True for _ in child.parameters()) and not any(u.startswith(f"{name}.") for u in used)
    ]
    single = [name for name in unused if any(u.startswith(name[: name.rfind(".") + 1]) for u in used)]
    return [*children, *sorted(single)]


def drop_parts(tower: nn.Module, parts: Sequence[str]) -> None:
    """Take parts out of a tower: a module becomes an identity, a parameter None."""
    for name in parts:
        owner, _, leaf = name.rpartition(".")
        holder = tower.get_submodule(owner)
        setattr(holder, leaf, None if leaf in holder._parameters else nn.Identity())


def fill_from_transformers(
    name: str, tower: PreTrainedModel, checkpoint: str, settings: Mapping[str, Any], prefix: str = ""
) -> None:
    """Fill a transformers vision tower from a hub id or folder of its family, vision tower alone or with its text tower.

    A vision-language model of transformers with a tower of this family serves, too. `settings` go by our names or
    config.json's. Raises `ConfigError` with every one that config.json contradicts,
    `CheckpointError` with every tensor that is missing or of another shape. Tensors that the tower does not use (later
    blocks, heads, text) are not read. `prefix` stands before the tower's names where the checkpoint holds more than the
    tower and transformers does not know so.
    """
    config_class = type(tower).config_class
    assert config_class is not None
    raw = read_config_entries(checkpoint, config_class)
    before = re.escape(prefix)
    if _has_tower(raw, config_class):
        raw, before = raw["vision_config"], TOWER_OF_A_WHOLE_MODEL
    _require_same_sizes(name, config_class, checkpoint, raw, settings)
    with _quiet_transformers():
        loaded, report = read_model(
            type(tower),
            checkpoint,
            config=deepcopy(tower.config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            key_mapping={rf"^{before}": ""} if before else None,
        )
    misshapen = {key: _format_shapes(there, here) for key, there, here in report["mismatched_keys"]}
    state = {k: v for k, v in loaded.state_dict().items() if k not in report["missing_keys"] and k not in misshapen}
    fill_module(name, tower, state, checkpoint, misshapen)


def fill_module(
    name: str, module: nn.Module, state: Mapping[str, Tensor], where: str, faults: Mapping[str, str] | None = None
) -> None:
    """Copy every tensor that `module` holds from `state`, which may hold more.

    Raises `CheckpointError` listing each one that is missing, of another shape, or named in `faults`.
    """
    wanted = module.state_dict()
    if any(tensor.is_meta for tensor in wanted.values()):
        raise ConfigError(
            f"encoder {name!r} was built on the meta device, which holds no weights; build it on the CPU."
        )
    wrong = {key: fault for key, fault in (faults or {}).items() if key in wanted}
    for key, here in wanted.items():
        if key not in state:
            wrong.setdefault(key, "missing")
        elif state[key].shape != here.shape:
            wrong[key] = _format_shapes(state[key].shape, here.shape)
    if wrong:
        listed = "\n  ".join(f"{key}: {fault}" for key, fault in sorted(wrong.items()))
        raise CheckpointError(
            f"encoder {name!r}: {where} does not hold the weights that the settings need.\n  {listed}"
        )
    module.load_state_dict({key: state[key] for key in wanted})


def _format_shapes(there: Sequence[int], here: Sequence[int]) -> str:
    return f"{tuple(there)} in the checkpoint, {tuple(here)} here"


def _list_own_types(config_class: type[PreTrainedConfig]) -> tuple[str, str]:
    """The model_type of a tower with its text tower, and alone."""
    return config_class.model_type.removesuffix("_vision_model"), config_class.model_type


def _has_tower(raw: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> bool:
    """Whether a config.json is that of another family's model whose tower is of this one."""
    tower = raw.get("vision_config")
    own = str(raw.get("model_type")).replace("-", "_") in _list_own_types(config_class)
    return not own and isinstance(tower, dict) and tower.get("model_type") == config_class.model_type


def _require_same_sizes(
    name: str,
    config_class: type[PreTrainedConfig],
    checkpoint: str,
    raw: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    if str(raw.get("model_type")).replace("-", "_") not in (own := _list_own_types(config_class)):
        raise ConfigError(f"encoder {name!r}: {checkpoint} is a {raw.get('model_type')!r} model, not {own[0]!r}.")
    with convert_checkpoint_errors(checkpoint, "config.json"):
        config = config_class.from_dict(raw.get(config_class.base_config_key, raw))
    wrong = [
        f"{setting}={here}, but {key} is {there}"
        for setting, here in settings.items()
        if (there := getattr(config, key := CONFIG_KEYS.get(setting, setting))) != here
    ]
    if wrong:
        raise ConfigError(
            f"encoder {name!r}: the settings disagree with {checkpoint}/config.json; take its values.\n  "
            + "\n  ".join(wrong)
        )


@contextmanager
def wrap_read_errors(name: str, checkpoint: str) -> Iterator[None]:
    """Turn what transformers, timm and safetensors raise for an absent or damaged checkpoint into `CheckpointError`."""
    from safetensors import SafetensorError

    try:
        yield
    except MMBlocksError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as cause:
        raise CheckpointError(f"encoder {name!r}: the checkpoint {checkpoint!r} cannot be read: {cause}") from cause


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hide transformers' table of unused tensors: missing ones are an error here."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
