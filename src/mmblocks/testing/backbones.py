"""Laws of language models over packed embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from mmblocks.batch import Packing, Rows
from mmblocks.components import Backbone
from mmblocks.testing.laws import Subject, require, silent_parameters


def it_keeps_the_protocol(subject: Subject) -> None:
    """It states dim, vocab_size and max_tokens, and has embed, hidden and logits."""
    backbone = subject.build()
    require(isinstance(backbone, Backbone), "Something of it is missing.")


def rows_in_rows_out(subject: Subject) -> None:
    """(tokens, dim) in, (tokens, dim) out; logits are (tokens, vocab_size)."""
    backbone = subject.build().eval()
    x = backbone.embed(torch.arange(9))
    hidden = backbone.hidden(x, _positions([4, 5]), Packing.of([4, 5]))
    require(x.shape == (9, backbone.dim), f"embed gives {tuple(x.shape)}.")
    require(hidden.shape == x.shape, f"hidden gives {tuple(hidden.shape)}.")
    seen = tuple(backbone.logits(hidden).shape)
    require(seen == (9, backbone.vocab_size), f"logits gives {seen}, vocab_size is {backbone.vocab_size}.")


def rows_asked_for_are_those_of_the_whole(subject: Subject) -> None:
    """hidden(..., rows) gives these rows of what it gives without: some, none, or all."""
    backbone = subject.build().eval()
    x, packing = _embeddings(9, backbone.dim), Packing.of([4, 5])
    whole = backbone.hidden(x, _positions([4, 5]), packing)
    for index, counts in (((1, 3, 7), (2, 1)), ((), (0, 0)), (range(9), (4, 5))):
        rows = Rows(torch.tensor(index, dtype=torch.int64), counts)
        some = backbone.hidden(x, _positions([4, 5]), packing, rows)
        want = whole[rows.index]
        require(some.shape == want.shape, f"{len(rows.index)} rows are {tuple(some.shape)}, not {tuple(want.shape)}.")
        apart = (some - want).abs().max() if len(rows.index) else torch.zeros(())
        require(bool(apart <= 1e-5), f"They are {apart:.2e} apart.")


def packing_changes_nothing(subject: Subject) -> None:
    """Sequences packed in one row give what each gives alone."""
    backbone, lengths = subject.build().eval(), [3, 1, 6]
    x = _embeddings(10, backbone.dim)
    packed = backbone.hidden(x, _positions(lengths), Packing.of(lengths))
    alone = [backbone.hidden(part, torch.arange(len(part)), Packing.of([len(part)])) for part in x.split(lengths)]
    apart = (packed - torch.cat(alone)).abs().max()
    require(bool(apart <= 1e-5), f"They are {apart:.2e} apart.")


def no_sequence_notices_its_neighbour(subject: Subject) -> None:
    """Another first sequence moves the second by exactly nothing."""
    backbone = subject.build().eval()
    x = _embeddings(9, backbone.dim)
    other = torch.cat([x[:4] + 1, x[4:]])
    before, after = (backbone.hidden(rows, _positions([4, 5]), Packing.of([4, 5])) for rows in (x, other))
    moved = (before[4:] - after[4:]).abs().max()
    require(bool(moved == 0), f"It moves by {moved:.2e}.")


def no_row_sees_a_later_one(subject: Subject) -> None:
    """It is causal: later rows move no earlier one."""
    backbone = subject.build().eval()
    x = _embeddings(6, backbone.dim)
    later = torch.cat([x[:3], x[3:] + 1])
    before, after = (backbone.hidden(rows, torch.arange(6), Packing.of([6])) for rows in (x, later))
    moved = (before[:3] - after[:3]).abs().max()
    require(bool(moved <= 1e-6), f"They move by {moved:.2e}.")


def gradients_reach_it(subject: Subject) -> None:
    """Gradients reach every parameter."""
    backbone, ids = subject.build(), torch.arange(8)
    hidden = backbone.hidden(backbone.embed(ids), torch.arange(8), Packing.of([8]))
    backbone.logits(hidden).square().sum().backward()
    require(not (silent := silent_parameters(backbone)), f"None reaches {', '.join(silent)}.")


LAWS = (
    it_keeps_the_protocol,
    rows_in_rows_out,
    rows_asked_for_are_those_of_the_whole,
    packing_changes_nothing,
    no_sequence_notices_its_neighbour,
    no_row_sees_a_later_one,
    gradients_reach_it,
)


def _positions(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


def _embeddings(rows: int, dim: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1))
