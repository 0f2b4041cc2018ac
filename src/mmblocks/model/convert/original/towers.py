"""Vision towers of LLaVA's checkpoints: their sizes, and their weights where the checkpoint has none."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmblocks.components import encoders
from mmblocks.encoders.vit import CONFIG_KEYS
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.json_files import read_object
from mmblocks.model.convert.keys import BLOCK
from mmblocks.pretrained import read_config_entries
from mmblocks.registry import Spec

PREFIX = "model.vision_tower.vision_tower."
KINDS = ("clip", "siglip")
SIZES = ("image_px", "patch_px", "dim", "depth", "heads", "mlp_dim")
MODULES = {f"mmblocks.encoders.{kind}": kind for kind in KINDS}
FIXED = {"clip": {"norm_eps": 1e-5}, "siglip": {"norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}}
"""Config entries for which our encoders have no setting."""


@dataclass(frozen=True, slots=True)
class OriginalTower:
    """Sizes of a CLIP or SigLIP tower. `checkpoint` is a hub id or folder that holds its weights."""

    kind: str
    image_px: int
    patch_px: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    checkpoint: str | None
    hidden_act: str

    @property
    def num_patches(self) -> int:
        return (self.image_px // self.patch_px) ** 2

    def make_encoder_settings(self, layer: int, select: str) -> dict[str, Any]:
        """Settings of our encoder for it."""
        sizes = {k: v for k, v in asdict(self).items() if k != "kind"}
        if self.kind == "siglip":
            del sizes["hidden_act"]
            return {"name": "siglip", **sizes, "layer": layer}
        return {"name": "clip", **sizes, "layer": layer, "select": select}


def list_known_towers() -> dict[str, OriginalTower]:
    """Towers by hub id, as the presets of our encoders describe them."""
    towers = {}
    for name in encoders:
        kind = MODULES.get(encoders.find_info(name).module)
        if kind is not None and encoders.find_info(name).preset_of is not None:
            tower = _make_tower(kind, {s.name: s.default for s in encoders.list_settings(name)})
            towers[str(tower.checkpoint)] = tower
    return towers


def _make_tower(kind: str, settings: Mapping[str, Any]) -> OriginalTower:
    sizes = {k: settings[k] for k in (*SIZES, "checkpoint")}
    return OriginalTower(kind, **sizes, hidden_act=settings.get("hidden_act", "gelu_pytorch_tanh"))


def read_named_tower(name: str, folder: Path) -> OriginalTower:
    """The tower that `mm_vision_tower` names: a hub id, or a local folder, which may lie inside the checkpoint.

    Raises `ConfigError` when its sizes cannot be found, or when our encoders do not compute it.
    """
    local = next((place for place in (folder / name, Path(name)) if (place / "config.json").is_file()), None)
    if local is not None:
        return _read_tower(read_object(local / "config.json"), str(local.resolve()))
    known = list_known_towers()
    if name in known:
        return known[name]
    try:
        return _read_tower(read_config_entries(name), name)
    except CheckpointError as cause:
        raise ConfigError(
            f"{folder}: mm_vision_tower is {name!r}, neither a local folder with a config.json nor a hub id that can "
            f"be reached nor one of {', '.join(sorted(known))}; put the tower's folder there or write its path."
        ) from cause


def _read_tower(raw: Mapping[str, Any], where: str) -> OriginalTower:
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    vision = raw.get("vision_config", raw)
    kind = str(raw.get("model_type") or vision.get("model_type")).partition("_")[0]
    if kind not in KINDS:
        raise ConfigError(f"{where} is a {kind!r} model; only the towers {' and '.join(KINDS)} are read.")
    config = (CLIPVisionConfig if kind == "clip" else SiglipVisionConfig).from_dict(dict(vision))
    settings = {ours: getattr(config, CONFIG_KEYS[ours]) for ours in (*SIZES, "hidden_act", "norm_eps")}
    wrong = [
        f"{CONFIG_KEYS[name]} is {settings[name]!r}; only {value!r} is computed."
        for name, value in FIXED[kind].items()
        if settings[name] != value
    ]
    if wrong:
        raise ConfigError(f"{where}/config.json: " + " ".join(wrong))
    return _make_tower(kind, {**settings, "checkpoint": where})


def has_tower(stored: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint holds its tower, as after training of the tower; other checkpoints only name it."""
    return any(name.startswith(PREFIX) for name in stored)


def require_matching_tower(tower: OriginalTower, stored: Mapping[str, Tensor], folder: Path) -> OriginalTower:
    """The named tower, compared with the one in the file. A SigLIP tower in the file lacks the block that LLaVA deletes."""
    kind = "clip" if f"{PREFIX}vision_model.embeddings.class_embedding" in stored else "siglip"
    if kind != tower.kind:
        raise CheckpointError(f"{folder}: the tower in the file is {kind}, and mm_vision_tower names a {tower.kind}.")
    positions = stored.get(f"{PREFIX}vision_model.embeddings.position_embedding.weight")
    if positions is not None and len(positions) != tower.num_patches + (kind == "clip"):
        raise CheckpointError(
            f"{folder}: the tower has {len(positions)} positions, which do not fit images of {tower.image_px} pixels "
            f"at {tower.patch_px} pixels a patch (mm_vision_tower)."
        )
    if tower.checkpoint in list_known_towers():
        return tower
    matches = [BLOCK.match(name.replace(PREFIX, "encoder.", 1)) for name in stored]
    blocks = max((int(match[1]) + 1 for match in matches if match), default=0)
    depth = max(tower.depth, blocks + 1) if kind == "siglip" else tower.depth
    return replace(tower, depth=depth, checkpoint=None)


def fetch_tensors(settings: Spec) -> dict[str, Tensor]:
    """The tensors of a tower outside of the checkpoint, read by the encoder itself, under LLaVA's names."""
    encoder = encoders.build(settings)
    encoder.load_pretrained()
    return {f"{PREFIX}{name}": tensor for name, tensor in encoder.state_dict().items()}
