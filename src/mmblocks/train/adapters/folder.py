"""The weights in an adapter folder that are not adapters: trained parts, in PEFT's files where these have a place for them.

PEFT's `modules_to_save` takes a whole module, such as the projector of transformers' LLaVAs. A tensor that is named as in the
base model is read into the base model itself, as PEFT does with trained biases; so the newline and an encoder are kept.
Weights that the base model has no name for are in a file of our own, under our names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from mmblocks.model.convert.adapter import OWN_TENSORS
from mmblocks.model.convert.keys import IN_MEMORY, to_theirs
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import PARTS
from mmblocks.model.trainable import find_part, list_trainable_parameters
from mmblocks.reprs import format_by_shape

log = logging.getLogger(__name__)

AdapterBase = Literal["transformers", "backbone"]
BACKBONE_PREFIX = "backbone.lm."
ADAPTERS, README = "adapter_model.safetensors", "README.md"
PROJECTOR = "multi_modal_projector"
README_TEXT = f"""\
# Not complete in PEFT's files

`{ADAPTERS}` holds low-rank adapters and all that PEFT can name. These tensors were trained, too, and are in `{OWN_TENSORS}` under
the names that mmblocks gives them:

{{rows}}

In mmblocks, the model that the stage started from becomes the trained one by

    from mmblocks.model.convert.adapter import apply_adapter
    apply_adapter(model, "FOLDER")
"""
SAVED_WHOLE = {f"model.{PROJECTOR}.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}


@dataclass(frozen=True, slots=True)
class NonAdapterWeights:
    """Trained weights that are not adapters, by their names in the base model; the others by our names."""

    base_tensors: Mapping[str, Tensor]
    own_tensors: Mapping[str, Tensor]
    __repr__ = format_by_shape

    @classmethod
    def from_model(cls, model: OneVision, base: AdapterBase) -> NonAdapterWeights:
        """Parts of which something is trained, with their buffers, and trained weights of the backbone."""
        trained: dict[str, Tensor] = {}
        for part in PARTS:
            if part == "backbone":
                parameters = set(map(id, list_trainable_parameters(model, part)))
                named = model.backbone.named_parameters()
                tensors = {name: p for name, p in named if p.requires_grad and id(p) in parameters}
            else:
                module = find_part(model, part)
                tensors = module.state_dict() if any(p.requires_grad for p in module.parameters()) else {}
            for name, tensor in tensors.items():
                trained[f"{part}.{name.replace('.base_layer', '')}"] = tensor.detach().cpu().clone().contiguous()
        base_names: dict[str, str] = {}
        for name in trained if base == "transformers" else ():
            is_other_token = name.startswith("learned_tokens.") and name not in IN_MEMORY
            base_name = name if is_other_token else to_theirs(name, IN_MEMORY)
            if base_name != name:
                base_names[name] = base_name
        if {name for name in base_names.values() if PROJECTOR in name} != SAVED_WHOLE:
            base_names = {name: base_name for name, base_name in base_names.items() if PROJECTOR not in base_name}
        own_tensors = {name: tensor for name, tensor in trained.items() if name not in base_names}
        return cls({base_name: trained[name] for name, base_name in base_names.items()}, own_tensors)

    @property
    def modules_to_save(self) -> list[str] | None:
        """PEFT's `modules_to_save`."""
        return [PROJECTOR] if any(PROJECTOR in name for name in self.base_tensors) else None

    def write_own_tensors(self, folder: Path) -> None:
        """Write a file of our own and a README.md that lists its tensors; nothing where PEFT's files hold everything."""
        if not self.own_tensors:
            return
        from safetensors.torch import save_file

        save_file(dict(self.own_tensors), folder / OWN_TENSORS)
        rows = "\n".join(f"- `{name}` {tuple(tensor.shape)}" for name, tensor in self.own_tensors.items())
        (folder / README).write_text(README_TEXT.format(rows=rows), encoding="utf-8")
        log.warning(
            "%s: PEFT's files have no place for %s; they are in %s, which peft.PeftModel.from_pretrained does not read "
            "(see %s there).",
            folder,
            ", ".join(self.own_tensors),
            OWN_TENSORS,
            README,
        )
