"""What a fine-tuning run has saved of a model, read over the base that it was trained on.

Folders of PEFT (for models of ours or of transformers), of LLaVA's LoRA runs (adapter_model and non_lora_trainables.bin) and
of its first stage (mm_projector.bin).
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.json_files import read_object
from mmblocks.model.convert import keys, layout_of, read_raw_config
from mmblocks.model.convert.layout import CheckpointLayout
from mmblocks.model.convert.original.adapter import read_adapter
from mmblocks.model.convert.original.llava import LLaVAFolder, import_original_folder
from mmblocks.model.convert.pickled import read_pickled
from mmblocks.model.convert.weights import MatchedTensors, has_weights, open_tensors
from mmblocks.model.loading import locate_folder, locate_model, read_located_spec
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.tensors import StoredTensors

if TYPE_CHECKING:
    from mmblocks.model.loading import LocatedModel

CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
OWN_TENSORS = "beside.safetensors"
"""Trained weights that PEFT's files have no place for, under our names."""
NON_LORA, PROJECTOR = "non_lora_trainables.bin", "mm_projector.bin"
PEFT_PREFIX = "base_model.model."
BACKBONE: keys.NameTable = {"backbone.lm.": ""}
"""Names of an adapter of the language model alone."""


@dataclass(frozen=True, slots=True)
class AdapterLayout(CheckpointLayout):
    """A folder without the weights of its base. base: a reference to that, as in `locate_model`; empty for the one that the
    folder names.
    """

    base: str = ""
    about = "an adapter folder of PEFT or LLaVA"

    def can_read(self, folder: Path) -> bool:
        return any((folder / name).is_file() for name in (CONFIG, PROJECTOR)) and not has_weights(folder)

    def read_spec(self, folder: Path, template: str | None = None) -> ModelSpec:
        base = self._name_base(folder)
        if is_of_llava(folder):
            return self._open_llava_folder(folder, base).read_spec(template)
        return read_located_spec(locate_model(base))

    def read_model(self, folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, MatchedTensors]:
        base = self._name_base(folder)
        if is_of_llava(folder):
            model, record = import_original_folder(self._open_llava_folder(folder, base), dtype, template)
        else:
            located: LocatedModel = locate_model(base)
            model, record = layout_of(located.layout).import_model(located.folder, dtype=dtype, template=template)
            model.origin = located.origin or model.origin
        if (folder / CONFIG).is_file():
            apply_adapter(model, folder)
        return model, replace(record, layout=f"{record.layout}, with the adapter in {folder.name}")

    def find_weights_folder(self, folder: Path) -> Path:
        return locate_folder(self._name_base(folder))[0]

    def reasons_against_export(self, model: OneVision) -> list[str]:
        return ["an adapter is written by training (train.lora), beside the merged model."]

    def export_model(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        raise ConfigError(self.reasons_against_export(model)[0])

    def _name_base(self, folder: Path) -> str:
        config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        named, revision = config.get("base_model_name_or_path"), config.get("revision")
        if named and revision and not Path(named).exists():
            named = f"{named}@{revision}"
        base = self.base or named or read_raw_config(folder).get("_name_or_path")
        if not base:
            raise CheckpointError(f"{folder} is an adapter that names no base model; name it: --base MODEL.")
        try:
            locate_folder(str(base))
        except CheckpointError as cause:
            raise CheckpointError(
                f"{folder} is an adapter of {base}; name a base that is here with --base MODEL, because {cause}"
            ) from cause
        return str(base)

    def _open_llava_folder(self, folder: Path, base: str) -> LLaVAFolder:
        """The composition of a LoRA or first-stage run of LLaVA, whose base is a language model or a LLaVA."""
        base_folder, _ = locate_folder(base)
        layers: list[Any] = [_read_non_adapters(folder), open_tensors(base_folder)]  # only read
        return LLaVAFolder(folder, ChainMap(*layers), base_folder)


LAYOUT = AdapterLayout()


def is_of_llava(folder: Path) -> bool:
    """Whether a folder holds what LLaVA's own training writes, with the settings of the whole model."""
    return "mm_projector_type" in read_raw_config(folder)


def _read_non_adapters(folder: Path) -> Mapping[str, Tensor]:
    if (folder / NON_LORA).is_file():
        return {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in read_pickled(folder / NON_LORA).items()}
    return read_adapter(folder / PROJECTOR) if (folder / PROJECTOR).is_file() else {}


# Low-rank adapters ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def apply_adapter(model: OneVision, folder: Path | str) -> None:
    """Turn the model that a fine-tuning started from into the trained one, in place: adapters are merged into the weights, all
    other trained weights are copied.

    folder: of PEFT, as `mmblocks.train.adapters.lora.save_adapter`, peft or LLaVA writes it. Raises `CheckpointError` when it
    belongs to another model, and for adapters other than LoRA.
    """
    folder = Path(folder)
    config, tensors = _read_peft_folder(folder)
    weights = model.state_dict(keep_vars=True)
    renamed = _rename_to_ours(tensors, weights) | _read_own_tensors(folder)
    for name in sorted(renamed):
        if ".lora_B." in name:
            continue
        layer, is_adapter, _ = name.partition(".lora_A.")
        change = renamed[name]
        if is_adapter:
            up = renamed.get(f"{layer}.lora_B.weight")
            if up is None:
                raise CheckpointError(f"{folder}: {name} has no lora_B; the file is not whole.")
            change = up.float() @ change.float() * _compute_scale(config, layer, rank=len(change))
        target = weights.get(f"{layer}.weight" if is_adapter else name)
        if target is None or target.shape != change.shape:
            shape = "nothing" if target is None else f"{tuple(target.shape)}"
            raise CheckpointError(f"{folder}: {name} is for a {tuple(change.shape)}, where the model has {shape}.")
        target.copy_(target + change.to(target) if is_adapter else change)


def _read_peft_folder(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is not an adapter folder that can be read: it has no {CONFIG}.")
    config = read_object(folder / CONFIG)
    unread = [f"{key}={config[key]!r}" for key in ("use_dora", "fan_in_fan_out") if config.get(key)]
    if config.get("peft_type", "LORA") != "LORA":
        unread.append(f"peft_type={config['peft_type']!r}")
    if unread:
        raise CheckpointError(
            f"{folder / CONFIG}: {', '.join(unread)}; merge this adapter with peft and load the result."
        )
    file = next((folder / name for name in PEFT_FILES if (folder / name).is_file()), folder / PEFT_FILES[0])
    stored = read_pickled(file) if file.suffix == ".bin" else StoredTensors([file])
    tensors = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in stored.items()}
    kinds = (".lora_A.weight", ".lora_B.weight")
    if unknown := sorted(name for name in tensors if ".lora_" in name and not name.endswith(kinds)):
        raise CheckpointError(f"{file}: {unknown[0]} is no adapter of a linear layer, and only these are read.")
    return config, tensors


def _read_own_tensors(folder: Path) -> dict[str, Tensor]:
    return dict(StoredTensors([folder / OWN_TENSORS])) if (folder / OWN_TENSORS).is_file() else {}


def _rename_to_ours(tensors: Mapping[str, Tensor], weights: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by our names, by the table that finds most of them in the model."""
    known = {*weights}

    def count_found(table: keys.NameTable) -> int:
        named = (keys.to_ours(name, table) for name in tensors)
        return sum(re.sub(r"\.lora_[AB]\.weight$", ".weight", name) in known for name in named)

    best = max((*keys.HF_LAYOUTS.values(), keys.BLIP2, BACKBONE), key=count_found)
    return {keys.to_ours(name, best): tensor for name, tensor in tensors.items()}


def _compute_scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) (https://arxiv.org/abs/2312.03732), with the alpha of this layer."""
    patterns = (config.get("alpha_pattern") or {}).items()
    own = (value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", layer))
    return float(next(own, config["lora_alpha"])) / (math.sqrt(rank) if config.get("use_rslora") else rank)
