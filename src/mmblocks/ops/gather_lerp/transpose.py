"""The transpose of a gather table: which outputs read each input."""

from dataclasses import replace

import torch

from mmblocks.batch import GatherTable


def with_transpose(table: GatherTable) -> GatherTable:
    """The same table with its `transpose`: for each input the outputs that read it, ascending, and their weights.

    The transpose has as many columns as the most read input has outputs; shorter rows are filled with weights of 0. Make
    it where the table is made, in the data worker: on a device the host waits for the device.
    """
    n, k = table.rows.shape
    used = table.weights.flatten().nonzero().squeeze(1)
    inputs, order = table.rows.flatten()[used].sort(stable=True)
    used = used[order]
    counts = inputs.bincount(minlength=table.size)
    place = torch.arange(len(inputs), device=inputs.device) - (counts.cumsum(0) - counts)[inputs]
    most = int(counts.max()) if table.size else 0
    rows = table.rows.new_zeros(table.size, most)
    weights = table.weights.new_zeros(table.size, most)
    rows[inputs, place] = used // max(k, 1)
    weights[inputs, place] = table.weights.flatten()[used]
    return replace(table, transpose=GatherTable(rows, weights, n))
