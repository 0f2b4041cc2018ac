"""Taps turned round: which outputs read each input."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmblocks.batch import GatherTable


def with_transpose(taps: GatherTable) -> GatherTable:
    """The same taps with `back`: for each input, the outputs that read it, ascending, and with what weight.

    Its k2 is the number of outputs of the input that most of them read; other inputs have taps of weight 0 behind
    theirs. To be made where the taps are made, in the data worker: on a device it waits for the device.
    """
    n, k = taps.rows.shape
    used = taps.weights.flatten().nonzero().squeeze(1)
    inputs, order = taps.rows.flatten()[used].sort(stable=True)
    used = used[order]
    counts = inputs.bincount(minlength=taps.size)
    place = torch.arange(len(inputs), device=inputs.device) - (counts.cumsum(0) - counts)[inputs]
    most = int(counts.max()) if taps.size else 0
    rows = taps.rows.new_zeros(taps.size, most)
    weights = taps.weights.new_zeros(taps.size, most)
    rows[inputs, place] = used // max(k, 1)
    weights[inputs, place] = taps.weights.flatten()[used]
    return replace(taps, transpose=GatherTable(rows, weights, n))
