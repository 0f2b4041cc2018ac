"""The parts before a language model that cannot be a backbone here: an encoder and a projector, each a folder."""

from __future__ import annotations

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
from mmblocks.model.checkpoint import disagreements
from mmblocks.model.convert import detect, keys
from mmblocks.model.convert.text import refuse
from mmblocks.model.convert.transformers.blip2 import encoder_settings, qformer_settings, vision_reasons
from mmblocks.model.convert.transformers.families import read_config
from mmblocks.model.convert.weights import read_weights
from mmblocks.storage import replaced_whole


@dataclass(frozen=True, slots=True)
class Parts:
    """An encoder and a projector with the settings they were built from."""

    encoder: nn.Module
    projector: nn.Module
    settings: Mapping[str, Any]

    def save(self, folder: Path) -> Path:
        """Write encoder/ and projector/ as a saved model has them, and config.json with their settings."""
        with replaced_whole(folder) as fresh:
            config = {"mmblocks": __version__, "parts": self.settings}
            (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            for name in ("encoder", "projector"):
                (fresh / name).mkdir()
                state = {key: tensor.contiguous() for key, tensor in getattr(self, name).state_dict().items()}
                save_file(state, fresh / name / "model.safetensors")
        return folder


def import_vision_parts(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> Parts:
    """Read the vision model, the Q-Former and the language projection of a BLIP-2, whatever its language model is.

    Raises `ConfigError` listing what we do not compute in the same way, `CheckpointError` listing every tensor of these
    parts that is missing, extra or of another shape.
    """
    folder = Path(folder)
    if (found := detect(folder)) != "blip-2":
        raise ConfigError(f"{folder} is in the layout {found!r}; parts are read of 'blip-2' only.")
    config = read_config(folder, "blip-2")
    refuse(folder, vision_reasons(config, folder))
    settings = {"encoder": encoder_settings(config), "projector": {"name": "qformer", **qformer_settings(config)}}
    encoder = encoders.build(settings["encoder"])
    projector = projectors.build(
        settings["projector"], in_dim=encoder.dim, out_dim=config.text_config.hidden_size, grid=encoder.grid
    )
    for name, tensors in _matched({"encoder": encoder, "projector": projector}, folder).items():
        {"encoder": encoder, "projector": projector}[name].load_state_dict(tensors)
    return Parts(encoder.to(dtype).eval(), projector.to(dtype).eval(), settings)


def _matched(parts: Mapping[str, nn.Module], folder: Path) -> dict[str, dict[str, Tensor]]:
    stored = read_weights(folder)
    theirs = {keys.to_ours(key, keys.BLIP2): key for key in stored}
    wanted = {
        f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()
    }
    found = {name: stored.shapes[key] for name, key in theirs.items() if name.partition(".")[0] in parts}
    if faults := disagreements(_in_their_words(wanted), _in_their_words(found)):
        raise CheckpointError(f"{folder} does not fit its config:\n  " + "\n  ".join(faults))
    return {
        part: {name.partition(".")[2]: stored[theirs[name]] for name in wanted if name.startswith(f"{part}.")}
        for part in parts
    }


def _in_their_words(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {keys.to_theirs(name, keys.BLIP2): tensor for name, tensor in tensors.items()}
