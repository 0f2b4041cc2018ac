"""Which conversations are read in which order: shares, laps and epochs, the same for the same seed."""

from collections import Counter

import pytest

from mmblocks.conversation import Conversation
from mmblocks.data.mixing.mixture import Mixture
from mmblocks.errors import ConfigError


def source(name, size):
    return [Conversation((), f"{name}{i}") for i in range(size)]


def mixture(*parts):
    """Sources of (name, size, weight)."""
    names, sizes, weights = zip(*parts, strict=True)
    return Mixture(tuple(map(source, names, sizes)), weights, names)


def origins(mixed, draws):
    return [mixed[draws[n]].origin for n in range(len(draws))]


def drawn(mixed, size, seed=(0,)):
    return origins(mixed, mixed.drawn(size, seed))


def test_a_source_is_read_through_before_anything_repeats():
    seen = drawn(mixture(("a", 7, 1.0)), 21)
    for lap in range(3):
        assert sorted(seen[7 * lap : 7 * lap + 7]) == [f"a{i}" for i in range(7)]
    assert seen[:7] != seen[7:14]


def test_sources_are_drawn_by_their_weights():
    seen = Counter(origin[0] for origin in drawn(mixture(("a", 50, 3.0), ("b", 50, 1.0)), 4000))
    assert seen["a"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_the_order_is_a_function_of_the_seed():
    mixed = mixture(("a", 20, 1.0), ("b", 20, 1.0))
    assert drawn(mixed, 30, (1, 2)) == drawn(mixed, 30, (1, 2))
    assert drawn(mixed, 30, (1, 2)) != drawn(mixed, 30, (1, 3))


def test_an_epoch_reads_every_conversation_once_whatever_the_weights():
    mixed = mixture(("a", 7, 3.0), ("b", 4, 1.0))
    everything = sorted(origins(mixed, mixed.everything()))
    one, two = origins(mixed, mixed.epochs(1, (0,))), origins(mixed, mixed.epochs(2.5, (0,)))
    assert sorted(one) == sorted(two[:11]) == sorted(two[11:22]) == everything
    assert two[:11] == one != everything
    assert two[11:22] != one
    assert len(two) == 22 + 6


def test_an_empty_source_is_refused(tmp_path):
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(ConfigError, match="no conversation"):
        Mixture.of([{"name": "tinyworld", "task": "text"}, {"name": "llava_json", "path": str(tmp_path / "none.json")}])
