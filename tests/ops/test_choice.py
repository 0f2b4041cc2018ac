"""Which way an op takes: the first without reasons, or the one that was asked for."""

import logging

import pytest

from mmblocks.errors import ConfigError
from mmblocks.ops import choice
from mmblocks.ops.choice import Backend, Op, find_requested_backend, list_ops, use_backends


@pytest.fixture
def op(monkeypatch):
    """An op that says which of its ways ran; "even" runs even numbers only."""
    monkeypatch.setattr(choice, "OPS", {op.name: op for op in list_ops()})
    even = Backend("even", lambda n: ("even", n), lambda n: ["the number is odd"] if n % 2 else [])
    return Op("halve", [even, Backend("reference", lambda n: ("reference", n), lambda n: [])])


def test_the_first_way_without_reasons_runs(op):
    assert [op(2), op(3)] == [("even", 2), ("reference", 3)]


def test_a_way_that_is_asked_for_runs(op):
    with use_backends(halve="reference"):
        assert op(2) == ("reference", 2)
    assert op(2) == ("even", 2)


def test_a_way_can_be_asked_for_every_op_that_has_it(op):
    with use_backends("reference"):
        assert op(2) == ("reference", 2)
    with use_backends("reference", halve="even"):
        assert op(2) == ("even", 2)
    with use_backends("varlen"):  # another op's
        assert op(2) == ("even", 2)


def test_a_way_that_was_asked_for_and_cannot_run_says_why(op):
    with (
        use_backends(halve="even"),
        pytest.raises(ConfigError, match=r"halve: the chosen backend 'even' cannot run here: the number is odd"),
    ):
        op(3)


def test_the_environment_asks_too_and_a_block_of_code_overrules_it(op, monkeypatch):
    monkeypatch.setenv("MMBLOCKS_OPS", "halve=reference, attention=varlen")
    assert (op(2), find_requested_backend("attention"), find_requested_backend("gather_lerp")) == (
        ("reference", 2),
        "varlen",
        "auto",
    )
    with use_backends():
        assert op(2) == ("even", 2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"halve": "odd"}, "halve has no backend 'odd'; write auto, even, reference"),
        ({"half": "even"}, "there is no op 'half'; there are .*halve"),
        ({"every": "quickest"}, "no op has a backend 'quickest'"),
    ],
)
def test_what_does_not_exist_cannot_be_asked_for(op, asked, message):
    with pytest.raises(ConfigError, match=message), use_backends(**asked):
        pass


def test_the_environment_is_read_as_strictly(op, monkeypatch):
    monkeypatch.setenv("MMBLOCKS_OPS", "halve=odd")
    with pytest.raises(ConfigError, match="MMBLOCKS_OPS: halve has no backend 'odd'"):
        op(2)


def test_a_choice_is_logged_once_with_what_stands_against_faster_ways(op, caplog):
    with caplog.at_level(logging.INFO, "mmblocks.ops.choice"):
        for number in (3, 5, 2, 4):
            op(number)
    assert [record.getMessage() for record in caplog.records] == [
        "halve: reference\n  not even: the number is odd",
        "halve: even",
    ]


def test_the_order_may_depend_on_the_inputs(op):
    even, reference = op.backends
    ordered = Op("halve", op.backends, order=lambda n: (reference, even) if n > 9 else (even, reference))
    assert [ordered(2), ordered(10)] == [("even", 2), ("reference", 10)]


def test_every_op_of_the_library_has_a_reference_that_always_runs_here():
    assert {op.name for op in list_ops()} >= {"attention", "gather_lerp", "linear_cross_entropy"}
    assert [way.unavailable_reasons() for op in list_ops() for way in op.backends if way.name == "reference"] == [
        []
    ] * len(list_ops())


def test_a_model_passes_on_what_is_wrong_with_the_setting(tiny_spec, monkeypatch):
    import mmblocks

    mmblocks.build(tiny_spec, seed=0)  # what was tried out of a composition is remembered
    monkeypatch.setenv("MMBLOCKS_OPS", "tritton")
    with pytest.raises(ConfigError, match=r"^MMBLOCKS_OPS: no op has a backend 'tritton'"):
        mmblocks.build(tiny_spec, seed=0)
