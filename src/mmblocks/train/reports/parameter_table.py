"""The table of what trains: how many parameters of each part learn, how fast, and through which adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mmblocks.json_files import read_object
from mmblocks.model.checks.composition import require_dry_build
from mmblocks.model.onevision import OneVision
from mmblocks.model.quantized import QuantizedLinear
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.model.trainable import LORA, list_adapters, list_trainable_parameters
from mmblocks.storage import write_json
from mmblocks.train.estimates.meta_stage import freeze_for_stage
from mmblocks.train.stages import Lora, Stage, read_run

TABLE_FILE = "trains.json"


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One part of a model, or the adapters in its backbone ("lora"; "backbone" is the rest of it then).

    lr: the learning rate it would have, None for a frozen part; weight_decay: that of its matrices, since biases, norms
    and learned tokens have none. dtype: of its weights, several where they differ. layers: how many linear layers have an
    adapter. bits: what the frozen backbone is quantized to.
    """

    part: str
    parameters: int
    learning: int
    dtype: str
    lr: float | None = None
    weight_decay: float | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    layers: int | None = None
    bits: int | None = None


def make_training_table(model: OneVision, stage: Stage) -> list[TrainingRow]:
    """What a model, as it stands with its parts frozen or not, learns in a stage."""
    names = [*PARTS, LORA] if list_adapters(model) else PARTS
    return [_make_row(model, name, stage) for name in names]


def _make_row(model: OneVision, name: str, stage: Stage) -> TrainingRow:
    parameters = list_trainable_parameters(model, name)
    every = sum(p.numel() for p in parameters)
    if name == "backbone":  # what is quantized is in no parameter
        every = count_weights(model.backbone) - sum(count_weights(adapter) for adapter in list_adapters(model))
    row = TrainingRow(
        part=name,
        parameters=every,
        learning=sum(p.numel() for p in parameters if p.requires_grad),
        dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
    )
    fast = stage.trained_parts.get(name)
    if fast is None:
        return row
    decay = fast.weight_decay if any(p.ndim > 1 for p in parameters) else 0.0
    row = replace(row, lr=fast.lr, weight_decay=decay)
    if not isinstance(fast, Lora):
        return row
    layers = sum(bool(getattr(m, "adapter_layer_names", ())) for m in model.backbone.modules())
    return replace(row, lora_rank=fast.rank, lora_alpha=fast.alpha, layers=layers, bits=fast.bits)


def count_weights(module: nn.Module) -> int:
    """Numbers that a module computes with, each shared one once; quantized ones are in no parameter."""
    coded = (m for m in module.modules() if isinstance(m, QuantizedLinear))
    return sum(p.numel() for p in module.parameters()) + sum(m.in_features * m.out_features for m in coded)


def make_training_tables(recipe: Mapping[str, Any]) -> dict[str, list[TrainingRow]]:
    """The table of every stage of a composed recipe, by the stage's name, on the meta device: no weight is read or made."""
    stages = read_run(recipe).stages
    model = make_meta_model(recipe["model"])
    return {stage.name: make_training_table(freeze_for_stage(model, stage), stage) for stage in stages}


def make_meta_model(spec: Mapping[str, object]) -> OneVision:
    """A whole model without weights. Raises `ConfigError` where its parts do not fit."""
    return require_dry_build(spec).to_model(ModelSpec.from_dict(spec))


# For people and for files -------------------------------------------------------------------------------------------


def format_training_table(rows: Sequence[TrainingRow]) -> str:
    """The rows and their sum as an aligned table."""
    learning, every = sum(r.learning for r in rows), sum(r.parameters for r in rows)
    cells: list[tuple[str, ...]] = [("part", "parameters", "learning", "lr", "weight decay", "dtype", "adapters")]
    for row in rows:
        numbers = (f"{v:g}" if v is not None else "-" for v in (row.lr, row.weight_decay))
        adapters = "" if row.bits is None else f", backbone in {row.bits} bits"
        if row.lora_rank is not None:
            adapters = f"rank {row.lora_rank}, alpha {row.lora_alpha:g}, on {row.layers} layers{adapters}"
        trained = f"{row.learning:,}" if row.learning else "frozen"
        cells.append((row.part, f"{row.parameters:,}", trained, *numbers, row.dtype or "-", adapters))
    cells.append(("all", f"{every:,}", f"{learning:,}", "", "", "", f"{100 * learning / max(every, 1):.2f} % learns"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligns = "<>>>><<"
    return "\n".join(
        "  ".join(f"{text:{align}{width}}" for text, align, width in zip(row, aligns, widths, strict=True)).rstrip()
        for row in cells
    )


def write_table(out: Path, stage: str, rows: Sequence[TrainingRow]) -> None:
    """Keep a stage's table in `out`/trains.json, beside those of other stages."""
    file = out / TABLE_FILE
    kept = read_object(file, "delete it; the run writes it anew.") if file.is_file() else {}
    write_json(file, {**kept, stage: [asdict(row) for row in rows]})
