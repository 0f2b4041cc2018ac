"""Encoder and projector of a checkpoint whose language model cannot be a backbone here, each written to a folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmblocks import __version__
from mmblocks.components import encoders, projectors
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.checkpoint import list_disagreements
from mmblocks.model.convert import detect_layout, keys
from mmblocks.model.convert.text import refuse_conversion
from mmblocks.model.convert.transformers.blip2 import list_vision_reasons, make_encoder_settings, make_qformer_settings
from mmblocks.model.convert.transformers.reading import read_family_config
from mmblocks.model.convert.weights import RenamedTensors
from mmblocks.storage import replace_folder
from mmblocks.tensors import StoredTensors, assign_tensors, leave_weights_empty


@dataclass(frozen=True, slots=True)
class CheckpointParts:
    """An encoder and a projector with the settings they were built from."""

    encoder: nn.Module
    projector: nn.Module
    settings: Mapping[str, Any]

    def save(self, folder: Path) -> Path:
        """Write encoder/ and projector/ as a saved model has them, and config.json with their settings."""
        with replace_folder(folder) as fresh:
            config = {"mmblocks": __version__, "parts": self.settings}
            (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            for name in ("encoder", "projector"):
                (fresh / name).mkdir()
                state = {key: tensor.contiguous() for key, tensor in getattr(self, name).state_dict().items()}
                save_file(state, fresh / name / "model.safetensors")
        return folder


def import_vision_parts(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> CheckpointParts:
    """Read the vision model, the Q-Former and the language projection of a BLIP-2, whatever its language model is.

    Raises `ConfigError` listing what we do not compute in the same way, `CheckpointError` listing every tensor of these
    parts that is missing, extra or of another shape.
    """
    folder = Path(folder)
    if (layout := detect_layout(folder)) != "blip-2":
        raise ConfigError(f"{folder} is in the layout {layout!r}; parts are read from 'blip-2' only.")
    config = read_family_config(folder, "blip-2")
    refuse_conversion(folder, list_vision_reasons(config, folder))
    settings = {
        "encoder": make_encoder_settings(config),
        "projector": {"name": "qformer", **make_qformer_settings(config)},
    }
    with leave_weights_empty():
        encoder = encoders.build(settings["encoder"])
        projector = projectors.build(
            settings["projector"], in_dim=encoder.dim, out_dim=config.text_config.hidden_size, grid=encoder.grid
        )
    parts, stored = nn.ModuleDict({"encoder": encoder, "projector": projector}), StoredTensors.from_folder(folder)
    theirs = {keys.to_ours(key, keys.BLIP2): key for key in stored}
    shapes = {name: stored.shapes[key] for name, key in theirs.items() if name.partition(".")[0] in parts}
    wanted = parts.state_dict()
    if faults := list_disagreements(_rename_to_theirs(wanted), _rename_to_theirs(shapes)):
        raise CheckpointError(f"{folder} does not fit its config:\n  " + "\n  ".join(faults))
    assign_tensors(parts, RenamedTensors(theirs, stored), dtype)
    return CheckpointParts(encoder.eval(), projector.eval(), settings)


def _rename_to_theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {keys.to_theirs(name, keys.BLIP2): tensor for name, tensor in tensors.items()}
