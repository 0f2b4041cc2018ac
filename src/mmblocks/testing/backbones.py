"""Conformance checks of language models over packed embeddings."""

import torch
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.components import Backbone
from mmblocks.testing.conformance import Subject, check_that, find_silent_parameters


def check_protocol(subject: Subject) -> None:
    """It has dim, vocab_size and max_tokens, embed_tokens, compute_hidden_states and compute_logits."""
    backbone = subject.build()
    check_that(isinstance(backbone, Backbone), "Some of these are missing.")


def check_output_shapes(subject: Subject) -> None:
    """(tokens, dim) in, (tokens, dim) out; logits are (tokens, vocab_size)."""
    backbone = subject.build().eval()
    x = backbone.embed_tokens(torch.arange(9))
    hidden = backbone.compute_hidden_states(x, _make_positions([4, 5]), Packing.from_lengths([4, 5]))
    check_that(x.shape == (9, backbone.dim), f"embed_tokens gives {tuple(x.shape)}.")
    check_that(hidden.shape == x.shape, f"compute_hidden_states gives {tuple(hidden.shape)}.")
    seen = tuple(backbone.compute_logits(hidden).shape)
    check_that(seen == (9, backbone.vocab_size), f"compute_logits gives {seen}, vocab_size is {backbone.vocab_size}.")


def check_row_selection(subject: Subject) -> None:
    """With `rows`, compute_hidden_states gives these rows of what it gives without: some, none, or all."""
    backbone = subject.build().eval()
    x, packing = _make_embeddings(9, backbone.dim), Packing.from_lengths([4, 5])
    whole = backbone.compute_hidden_states(x, _make_positions([4, 5]), packing)
    for index, counts in (((1, 3, 7), (2, 1)), ((), (0, 0)), (range(9), (4, 5))):
        rows = RowIndex(torch.tensor(index, dtype=torch.int64), counts)
        some = backbone.compute_hidden_states(x, _make_positions([4, 5]), packing, rows)
        want = whole[rows.index]
        check_that(
            some.shape == want.shape, f"{len(rows.index)} rows are {tuple(some.shape)}, not {tuple(want.shape)}."
        )
        apart = (some - want).abs().max() if len(rows.index) else torch.zeros(())
        check_that(bool(apart <= 1e-5), f"They are {apart:.2e} apart.")


def check_packing_invariance(subject: Subject) -> None:
    """Sequences packed in one row give what each gives alone."""
    backbone, lengths = subject.build().eval(), [3, 1, 6]
    x = _make_embeddings(10, backbone.dim)
    packed = backbone.compute_hidden_states(x, _make_positions(lengths), Packing.from_lengths(lengths))
    alone = [
        backbone.compute_hidden_states(part, torch.arange(len(part)), Packing.from_lengths([len(part)]))
        for part in x.split(lengths)
    ]
    apart = (packed - torch.cat(alone)).abs().max()
    check_that(bool(apart <= 1e-5), f"They are {apart:.2e} apart.")


def check_sequence_isolation(subject: Subject) -> None:
    """Another first sequence changes the second by exactly nothing."""
    backbone = subject.build().eval()
    x = _make_embeddings(9, backbone.dim)
    other = torch.cat([x[:4] + 1, x[4:]])
    before, after = (
        backbone.compute_hidden_states(rows, _make_positions([4, 5]), Packing.from_lengths([4, 5]))
        for rows in (x, other)
    )
    change = (before[4:] - after[4:]).abs().max()
    check_that(bool(change == 0), f"It changes by {change:.2e}.")


def check_causality(subject: Subject) -> None:
    """It is causal: later rows change no earlier one."""
    backbone = subject.build().eval()
    x = _make_embeddings(6, backbone.dim)
    later = torch.cat([x[:3], x[3:] + 1])
    before, after = (
        backbone.compute_hidden_states(rows, torch.arange(6), Packing.from_lengths([6])) for rows in (x, later)
    )
    change = (before[:3] - after[:3]).abs().max()
    check_that(bool(change <= 1e-6), f"They change by {change:.2e}.")


def check_gradients(subject: Subject) -> None:
    """Gradients reach every parameter."""
    backbone, ids = subject.build(), torch.arange(8)
    hidden = backbone.compute_hidden_states(backbone.embed_tokens(ids), torch.arange(8), Packing.from_lengths([8]))
    backbone.compute_logits(hidden).square().sum().backward()
    check_that(not (silent := find_silent_parameters(backbone)), f"None reaches {', '.join(silent)}.")


CHECKS = (
    check_protocol,
    check_output_shapes,
    check_row_selection,
    check_packing_invariance,
    check_sequence_isolation,
    check_causality,
    check_gradients,
)


def _make_positions(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


def _make_embeddings(rows: int, dim: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1))
