"""A pool of keys and values: spans that never overlap, and rows where they were put."""

import random
import resource
import sys

import pytest
import torch

from mmblocks.model.generation.pool import KVPool

CPU = torch.device("cpu")


def write(pool, spans, layers=2):
    """Rows that name their layer and slot, keys positive and values negative."""
    slots = torch.tensor([slot for span in spans for slot in span], dtype=torch.float32)
    with pool.place_rows(spans, CPU):
        for layer in range(layers):
            rows = (100 * layer + slots).view(1, 1, -1, 1).expand(1, 2, -1, 3)
            k, v = pool.update(rows, -rows, layer)
    return k, v


@pytest.mark.parametrize("seed", range(20))
def test_spans_never_overlap_and_come_back_whole(seed):
    rng, pool, used = random.Random(seed), KVPool(64), []
    for _ in range(300):
        if used and rng.random() < 0.5:
            span = used.pop(rng.randrange(len(used)))
            if rng.random() < 0.3 and (longer := pool.extend_span(span, len(span) + rng.randint(1, 5))):
                assert longer.start == span.start
                used.append(longer)
                continue
            cut = rng.randint(0, len(span))
            pool.release_span(span[cut:])
            pool.release_span(span[:cut])
        elif (span := pool.reserve_span(rng.randint(1, 20))) is not None:
            used.append(span)
        slots = [slot for span in used for slot in span]
        assert len(slots) == len({*slots}) == 64 - pool.free_slots
    for span in used:
        pool.release_span(span)
    assert pool.reserve_span(64) == range(64)


def test_a_span_is_found_wherever_enough_slots_adjoin():
    pool = KVPool(10)
    spans = [pool.reserve_span(n) for n in (3, 4, 3)]
    assert spans == [range(3), range(3, 7), range(7, 10)]
    assert pool.reserve_span(1) is None
    pool.release_span(spans[0])
    pool.release_span(spans[2])
    assert pool.reserve_span(4) is None
    assert pool.extend_span(spans[1], 7) == range(3, 10)
    assert pool.extend_span(range(3, 10), 8) is None


@pytest.mark.parametrize("twice", [range(4), range(2, 5), range(3, 12)])
def test_a_span_is_released_once(twice):
    pool = KVPool(12)
    spans = [pool.reserve_span(4) for _ in range(3)]
    pool.release_span(spans[0])
    pool.release_span(spans[2])
    with pytest.raises(AssertionError, match="once"):
        pool.release_span(twice)


def test_layers_get_all_slots_with_rows_where_they_were_put():
    pool = KVPool(8)
    k, v = write(pool, [range(2, 4), range(6, 7)])
    assert k.shape == v.shape == (1, 2, 8, 3)
    assert k[0, 0, :, 0].tolist() == [0, 0, 102, 103, 0, 0, 106, 0]
    assert torch.equal(v, -k)


def test_rows_are_copied_in_every_layer():
    pool = KVPool(8)
    write(pool, [range(4)])
    pool.copy_rows(range(4), range(5, 8), 2)
    assert [layer[:, 0, 0].tolist() for layer in pool._keys] == [
        [0, 1, 2, 3, 0, 0, 1, 0],
        [100, 101, 102, 103, 0, 100, 101, 0],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_taken_when_rows_are_written(dtype):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool = KVPool(1 << 28)
    rows = torch.ones(1, 1, 2, 2, dtype=dtype)
    span = pool.reserve_span(1 << 28)
    with pool.place_rows([span[-2:]], CPU):
        k, _ = pool.update(rows, rows, 0)  # 2 or 4 GiB
    assert k[0, 0, -3:].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert k.dtype == dtype
    kib_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kib_or_bytes < (1 << 29) // (1024 if sys.platform == "linux" else 1)


def test_layers_run_inside_place_rows():
    with pytest.raises(AssertionError, match="place_rows"):
        KVPool(4).update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0)
