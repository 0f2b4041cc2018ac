"""Which samples make which batch is decided by numbers alone."""

from collections import Counter

import pytest

from mmblocks.conversation import Conversation
from mmblocks.errors import ConfigError
from mmblocks.train.batches import Mixture


def source(name, size):
    return [Conversation((), f"{name}{i}") for i in range(size)]


def drawn(mixture):
    return [mixture[i].origin for i in range(len(mixture))]


def test_every_conversation_of_a_source_is_seen_once_before_any_is_seen_twice():
    seen = drawn(Mixture([(source("a", 7), 1.0)], 21, (0,)))
    laps = [seen[0:7], seen[7:14], seen[14:21]]
    assert all(sorted(lap) == sorted(laps[0]) for lap in laps)
    assert len(set(laps[0])) == 7
    assert laps[0] != laps[1]


def test_weights_are_shares_of_the_samples():
    seen = Counter(origin[0] for origin in drawn(Mixture([(source("a", 50), 3.0), (source("b", 50), 1.0)], 4000, (0,))))
    assert seen["a"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_order_depends_on_the_seed_alone():
    parts = [(source("a", 9), 1.0), (source("b", 5), 2.0)]
    assert drawn(Mixture(parts, 30, (1, 2))) == drawn(Mixture(parts, 30, (1, 2)))
    assert drawn(Mixture(parts, 30, (1, 2))) != drawn(Mixture(parts, 30, (1, 3)))


def test_an_empty_source_is_an_error():
    with pytest.raises(ConfigError, match=r"data.1: this source holds no conversation"):
        Mixture([(source("a", 3), 1.0), ([], 1.0)], 10, (0,))
