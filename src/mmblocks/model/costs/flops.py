"""FLOPs of a composition by unit of work, and how often training does that work.

A multiplication and an addition are two. torch counts on the meta device; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmblocks.batch import Batch, Packing, RowIndex
from mmblocks.compat import suppress_warning_errors
from mmblocks.components import Backbone
from mmblocks.model.checks.composition import DryBuild
from mmblocks.model.costs.counter import count_flops

PROBE_TOKENS = 1024
"""Length of the sequence that costs per token and per pair of tokens are read from."""
CAUSAL_SHARE = 0.5
"""A token attends to those before it: half of all pairs of a sequence."""


def count_prefill_flops(seen: DryBuild, views: int, tokens: int) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """FLOPs of a prefill by part, and a note for each part that torch cannot trace, whose count is None.

    "attention" is the share of "backbone" that multiplies activations, in full although causal kernels may skip half;
    "head" is that of one row.
    """
    encoder, backbone = seen.encoder, seen.backbone
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "encoder": (views, lambda: encoder(torch.empty(1, 3, *encoder.view_px))),
        "projector": (views, lambda: seen.projector(torch.empty(1, *encoder.grid, encoder.dim))),
        "backbone": (1, lambda: _run_prefill(backbone, tokens)),
        "head": (1, lambda: backbone.compute_logits(torch.empty(1, backbone.dim))),
    }
    flops: dict[str, int | None] = {}
    notes = []
    for part, (times, run) in runs.items():
        try:
            total, attention = count_run_flops(run) if times else (0, 0)
        except Exception as cause:  # any operator may refuse meta tensors, e.g. the routing of a mixture of experts
            flops[part] = None
            notes.append(f"FLOPs of the {part} depend on its weights ({type(cause).__name__}: {cause})")
            continue
        flops[part] = times * total
        if part == "backbone":
            flops["attention"] = attention
    return flops, tuple(notes)


def _run_prefill(backbone: Backbone, tokens: int, rows: RowIndex | None = None) -> Tensor:
    packing = Packing(torch.tensor([0, tokens], dtype=torch.int32, device="cpu"), tokens)
    return backbone.compute_hidden_states(torch.empty(tokens, backbone.dim), torch.arange(tokens), packing, rows)


@suppress_warning_errors()
def count_run_flops(run: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of a run on the meta device, and how many of them are products of activations (attention)."""
    by_operator = count_flops(run)
    return by_operator.total(), sum(n for name, n in by_operator.items() if "bmm" in name or "attention" in name)


@dataclass(frozen=True, slots=True)
class PassCounts:
    """How often a training step does the work of each part's forward pass.

    Once forward. Once more for gradients of its inputs, where it or a part before it learns. Once for gradients of its
    weights, by the share of them that learns. With gradient checkpointing once more for blocks that backward goes through.

    projector_body: of the projector's first layers, whose inputs need gradients only where the encoder learns.
    attention: products of activations, which have no weights. head: the vocabulary.
    """

    encoder: float = 1.0
    projector_body: float = 1.0
    projector: float = 1.0
    backbone: float = 1.0
    attention: float = 1.0
    head: float = 1.0

    @classmethod
    def from_learning(
        cls, learning: Mapping[str, float], *, gradient_checkpointing: bool = False, with_visuals: bool = True
    ) -> PassCounts:
        """learning: the share of weights that learns, by part that learns ("lora" too). with_visuals: False for a batch of
        text alone, which reaches neither encoder, projector nor learned tokens.
        """
        encoder, projector, backbone = (learning.get(part, 0.0) for part in ("encoder", "projector", "backbone"))
        before = with_visuals and any(part in learning for part in ("encoder", "projector", "learned_tokens"))
        reached = before or "backbone" in learning or "lora" in learning
        projects = "encoder" in learning or "projector" in learning
        return cls(
            encoder=1.0 + ("encoder" in learning) * (1.0 + gradient_checkpointing) + encoder,
            projector_body=1.0 + ("encoder" in learning) + projector,
            projector=1.0 + projects + projector,
            backbone=1.0 + reached * (1.0 + gradient_checkpointing) + backbone,
            attention=1.0 + reached * (2.0 + gradient_checkpointing),
            head=1.0 + reached + backbone,
        )


FORWARD = PassCounts()
"""A forward pass alone."""


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """FLOPs of a forward pass by unit of work.

    encoder, projector: per view; projector_row: of the projector's last affine map, per row that it is given. token: per
    token, and pair: per pair of tokens of a sequence, of all decoder layers; output_row, output_pair: the part of them
    that the last layer spares for each token that is no output row. label: of the vocabulary, per row. cells,
    projected_cells: of a view before and after the projector. notes: on parts that torch cannot trace (mixtures of
    experts), for which two FLOPs per weight are taken and no attention.
    """

    encoder: float
    projector: float
    projector_row: float
    token: float
    pair: float
    output_row: float
    output_pair: float
    label: float
    cells: int
    projected_cells: int
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dry_build(cls, seen: DryBuild) -> ForwardFlops:
        """Of a composition without faults."""
        flops, notes = count_prefill_flops(seen, 1, PROBE_TOKENS)
        assumed = {
            "encoder": 2 * (seen.count_parameters("encoder") or 0) * seen.encoder.grid.area,
            "projector": 2 * (seen.count_parameters("projector") or 0) * seen.encoder.grid.area,
            "backbone": 2 * (seen.count_parameters("backbone") or 0) * PROBE_TOKENS,
            "head": 2 * seen.backbone.dim * seen.backbone.vocab_size,
        }
        known = {part: n if (n := flops[part]) is not None else assumed[part] for part in assumed}
        attention = flops.get("attention") or 0
        output_row, output_pair = (
            (0.0, 0.0)
            if flops["backbone"] is None
            else _count_spared_flops(seen.backbone, known["backbone"] - attention, attention)
        )
        return cls(
            encoder=known["encoder"],
            projector=known["projector"],
            projector_row=2.0 * sum(weight.numel() for weight in seen.projector.head.parameters() if weight.ndim == 2),
            token=(known["backbone"] - attention) / PROBE_TOKENS,
            pair=attention / PROBE_TOKENS**2,
            output_row=output_row,
            output_pair=output_pair,
            label=known["head"],
            cells=seen.encoder.grid.area,
            projected_cells=seen.projector.out_grid(seen.encoder.grid).area,
            notes=notes,
        )

    def count_batch(
        self, batch: Batch, lengths: Sequence[int], output_rows: Sequence[int], passes: PassCounts = FORWARD
    ) -> float:
        """FLOPs of a batch whose sequences have these lengths and so many output rows each; of attention's pairs the
        causal half. Features that came with the batch cost the encoder nothing.
        """
        cells, rows = batch.num_views * self.cells, batch.num_views * self.projected_cells
        if batch.layout is not None:
            used = batch.layout.cell_table
            cells, rows = cells if used is None else len(used.rows), len(batch.layout.positions)
        tokens, outputs = sum(lengths), sum(output_rows)
        pairs = CAUSAL_SHARE * sum(n * n for n in lengths)
        output_pairs = CAUSAL_SHARE * sum(n * m for n, m in zip(output_rows, lengths, strict=True))
        body = (self.projector - self.projected_cells * self.projector_row) / self.cells
        linear = (self.token - self.output_row) * tokens + self.output_row * outputs
        return (
            (self.encoder * batch.num_views * passes.encoder if batch.features is None else 0.0)
            + body * cells * passes.projector_body
            + self.projector_row * rows * passes.projector
            + linear * passes.backbone
            + ((self.pair - self.output_pair) * pairs + self.output_pair * output_pairs) * passes.attention
            + self.label * outputs * passes.head
        )


def _count_spared_flops(backbone: Backbone, linear: int, attention: int) -> tuple[float, float]:
    """What the last layer spares where only some rows are wanted: per token, and per pair with such a token."""
    last = RowIndex(torch.empty(1, dtype=torch.int64, device="meta"), (1,), (PROBE_TOKENS - 1,), (0, PROBE_TOKENS))
    total, one_attention = count_run_flops(lambda: _run_prefill(backbone, PROBE_TOKENS, last))
    spared = linear - (total - one_attention)
    return spared / (PROBE_TOKENS - 1), (attention - one_attention) / (PROBE_TOKENS * (PROBE_TOKENS - 1))
