"""What a folder of adapters holds beside them: what else learned, in PEFT's files where they have a place for it.

PEFT's `modules_to_save` takes a whole module, such as the projector of transformers' LLaVAs. A tensor that is named as in the
base model is read into the base model itself, as PEFT does with trained biases: so the newline and an encoder are kept. What
that model has no name for is in a file of our own, under our names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmblocks.errors import CheckpointError
from mmblocks.model.convert.keys import IN_MEMORY, to_ours, to_theirs
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import PARTS
from mmblocks.model.trainable import find_part, list_trainable_parameters
from mmblocks.reprs import format_by_shape

log = logging.getLogger(__name__)

AdapterBase = Literal["transformers", "backbone"]
BACKBONE_PREFIX = "backbone.lm."
PEFT_PREFIX = "base_model.model."
ADAPTERS, CONFIG, BESIDE, README = "adapter_model.safetensors", "adapter_config.json", "beside.safetensors", "README.md"
PROJECTOR = "multi_modal_projector"
SAVED_WHOLE = {f"model.{PROJECTOR}.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}


@dataclass(frozen=True, slots=True)
class NonAdapterWeights:
    """What learned beside adapters. named: tensors by their names in the base model. ours: the others, by our names."""

    base_tensors: Mapping[str, Tensor]
    own_tensors: Mapping[str, Tensor]
    __repr__ = format_by_shape

    @classmethod
    def from_model(cls, model: OneVision, base: AdapterBase) -> NonAdapterWeights:
        """Parts of which something learns, with their buffers, and weights of the backbone that learn."""
        learned = _learned(model)
        known = {
            name: _to_base_name(name) for name in learned if base == "transformers" and _to_base_name(name) != name
        }
        if {name for name in known.values() if PROJECTOR in name} != SAVED_WHOLE:
            known = {name: theirs for name, theirs in known.items() if PROJECTOR not in theirs}
        ours = {name: tensor for name, tensor in learned.items() if name not in known}
        return cls({theirs: learned[name] for name, theirs in known.items()}, ours)

    @property
    def modules_to_save(self) -> list[str] | None:
        """PEFT's `modules_to_save`."""
        return [PROJECTOR] if any(PROJECTOR in name for name in self.base_tensors) else None

    def write_own_tensors(self, folder: Path) -> None:
        """A file of our own with a page that lists what is in it; nothing where PEFT's files hold everything."""
        if not self.own_tensors:
            return
        from safetensors.torch import save_file

        save_file(dict(self.own_tensors), folder / BESIDE)
        (folder / README).write_text(_readme(self.own_tensors), encoding="utf-8")
        log.warning(
            "%s: PEFT's files have no place for %s; they are in %s, which peft.PeftModel.from_pretrained does not read "
            "(see %s there).",
            folder,
            ", ".join(self.own_tensors),
            BESIDE,
            README,
        )


def _to_base_name(name: str) -> str:
    return name if name.startswith("learned_tokens.") and name not in IN_MEMORY else to_theirs(name, IN_MEMORY)


def _learned(model: OneVision) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in PARTS:
        if name == "backbone":
            around = set(map(id, list_trainable_parameters(model, name)))
            learning = [(n, p) for n, p in model.backbone.named_parameters() if p.requires_grad and id(p) in around]
        else:
            learns = any(p.requires_grad for p in find_part(model, name).parameters())
            learning = list(find_part(model, name).state_dict().items()) if learns else []
        found |= {f"{name}.{n.replace('.base_layer', '')}": _plain(t) for n, t in learning}
    return found


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()


def _readme(ours: Mapping[str, Tensor]) -> str:
    rows = "\n".join(f"- `{name}` {tuple(tensor.shape)}" for name, tensor in ours.items())
    return (
        f"# Not whole in PEFT's files\n\n`{ADAPTERS}` holds low-rank adapters and all that PEFT can name. These tensors learned, "
        f"too, and are in `{BESIDE}` under the names that mmblocks gives them:\n\n{rows}\n\n"
        "In mmblocks, the model that the stage started from becomes the trained one by\n\n"
        "    from mmblocks.train.adapter_folder import apply_adapter\n"
        '    apply_adapter(model, "FOLDER")\n'
    )


# Reading ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def apply_adapter(model: OneVision, folder: Path | str) -> None:
    """Make of the model that a stage started from what the stage made of it, in place: adapters merged into the weights, all
    else that learned written over them.

    folder: as `lora.save_adapter` wrote it. Raises `CheckpointError` when it belongs to another model.
    """
    folder = Path(folder)
    config, tensors = _read_adapter_folder(folder)
    weights = model.state_dict(keep_vars=True)
    for name in sorted(tensors):
        if ".lora_B." in name:
            continue
        layer, found, _ = name.partition(".lora_A.")
        target = weights.get(f"{layer}.weight" if found else name)
        change = _product(tensors, layer, config["lora_alpha"] / config["r"]) if found else tensors[name]
        if target is None or target.shape != change.shape:
            has = "nothing" if target is None else f"{tuple(target.shape)}"
            raise CheckpointError(f"{folder}: {name} is for a {tuple(change.shape)}, where the model has {has}.")
        target.copy_(target + change.to(target) if found else change)


def _product(tensors: Mapping[str, Tensor], layer: str, scale: float) -> Tensor:
    return tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"] * scale


def _read_adapter_folder(folder: Path) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Rank and alpha; every tensor of a folder by our name for it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / ADAPTERS)
        ours = load_file(folder / BESIDE) if (folder / BESIDE).is_file() else {}
    except (OSError, ValueError, SafetensorError) as cause:
        raise CheckpointError(f"{folder} is no folder of adapters that can be read ({cause}).") from cause
    alone = config.get("task_type") == "CAUSAL_LM"
    names = {name: name.removeprefix(PEFT_PREFIX) for name in tensors}
    read = {BACKBONE_PREFIX + n if alone else to_ours(n, IN_MEMORY): tensors[name] for name, n in names.items()}
    return {key: float(config[key]) for key in ("r", "lora_alpha")}, {**read, **ours}
