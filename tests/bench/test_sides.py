"""Both sides compute the same, or nothing is timed; the commands for a GPU run through on a CPU."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmblocks.batch import IGNORE
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import Size
from tests.bench.__main__ import main
from tests.bench.suites import ours, peer
from tests.bench.suites.cases import SCENARIOS, make_cases
from tests.bench.suites.equal import require_same_gradients, require_same_logits
from tests.bench.suites.pool_kernel import make_bilinear_table
from tests.bench.suites.rows import Row, read
from tests.bench.suites.run import BOUND, Run, Unequal, compute_error
from tests.bench.suites.sizes import make_model
from tests.bench.suites.suites import SUITES, run_suites
from tests.bench.suites.train import MIXED

RUN = Run(tiny=True, repeats=1, warmups=0, input_sets=1)


@pytest.fixture(scope="module")
def pair() -> Any:
    model = make_model(RUN.scale, RUN.device, RUN.dtype)
    return model, peer.make_peer(model)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_both_sides_give_the_same_logits(pair: tuple[OneVision, nn.Module], scenario: str) -> None:
    assert require_same_logits(scenario, *pair, make_cases(pair[0], RUN, scenario)[0]) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("scenario", ["anyres", "images", "video"])
def test_other_pixels_change_the_logits_far_more_than_rounding(
    pair: tuple[OneVision, nn.Module], scenario: str
) -> None:
    one, other = (
        ours.compute_last_logits(pair[0], case.batch)
        for case in make_cases(pair[0], replace(RUN, input_sets=2), scenario)
    )
    assert compute_error(one, other) > 20 * BOUND


def test_both_sides_share_their_weights(pair: tuple[OneVision, nn.Module]) -> None:
    model, theirs = pair
    found = dict(theirs.named_parameters())
    names = [(n, t) for n, t in peer.map_peer_names(model).items() if t in found]
    assert len(names) == len(list(model.named_parameters()))
    assert all(model.get_parameter(n).data_ptr() == found[t].data_ptr() for n, t in names)


def test_a_mixed_batch_gives_the_same_losses_and_gradients(pair: tuple[OneVision, nn.Module]) -> None:
    model, theirs = pair
    case = make_cases(model, RUN, *MIXED, answers=True)[0]
    assert require_same_gradients("train", model, theirs, case) < BOUND
    losses = [model(case.batch).loss, peer.compute_padded_loss(theirs, case), peer.compute_packed_loss(theirs, case)]
    torch.testing.assert_close(losses[1:], losses[:1] * 2, rtol=1e-5, atol=0)  # fp32 means over 48 rows
    assert (case.targets != IGNORE).sum() == case.batch.num_labelled


def test_sides_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = peer.make_peer

    def damaged(model: OneVision) -> object:
        theirs = made(model)
        theirs.model.multi_modal_projector.linear_2.bias = torch.nn.Parameter(torch.ones(model.backbone.dim))
        return theirs

    monkeypatch.setattr(peer, "make_peer", damaged)
    told = list(run_suites(["prefill"], RUN, tmp_path / "a.csv"))
    assert len(told) == 1
    assert "not timed: base: outputs differ" in told[0]
    assert read(tmp_path / "a.csv") == []


def test_gradients_that_differ_are_refused(pair: tuple[OneVision, nn.Module]) -> None:
    model, theirs = pair
    case = make_cases(model, RUN, *MIXED, answers=True)[0]
    with pytest.raises(Unequal, match="gradients differ"):
        require_same_gradients("train", model, theirs, case, bound=0.0)


def test_taps_of_the_kernel_benchmark_are_torchs_interpolation() -> None:
    x = torch.randn(2 * 27 * 27, 3)
    taps = make_bilinear_table(2, Size(27, 27), Size(14, 14))
    maps = x.view(2, 27, 27, 3).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(maps, size=(14, 14), mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)
    found = (x[taps.rows] * taps.weights.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)  # fp32: taps sum in another order


@pytest.mark.parametrize("name", sorted(set(SUITES) - {"startup"}))
def test_each_suite_goes_through_on_the_smallest_model(name: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    results = list(run_suites([name], RUN, out))
    assert [text for text in results if isinstance(text, str)] == []
    assert {row.suite for row in read(out)} == {name}
    assert [row for row in results if isinstance(row, Row) and row.peer and row.ours and not row.ratio] == []


def test_what_the_deadline_leaves_is_reported(tmp_path: Path) -> None:
    run = replace(RUN, ends=time.monotonic())
    results = [str(text) for text in run_suites(["vit", "prefill"], run, tmp_path / "gpu.csv")]
    assert [text.partition(":")[0] for text in results] == ["vit at tiny", "prefill at tiny"]
    assert all("stopped with 0 rows" in text for text in results)


def test_a_suite_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.bench.suites import ceil

    def fail(run: Run) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(ceil, "measure", fail)
    results = run_suites(["ceil", "pool_kernel"], RUN, None)
    assert "ceil at tiny: failed after 0 rows" in str(next(results))
    assert next(results).suite == "pool_kernel"


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_writes_rows_that_say_how_to_measure_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    assert main(["ceil", "--tiny", "--repeats", "1", "--out", str(out)]) == 0
    assert "matmul" in capsys.readouterr().out
    assert {row.command for row in read(out)} == {"python -m tests.bench ceil --size tiny --repeats 1 --tiny"}


def test_without_a_name_the_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in SUITES)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "no benchmark is called 'nonsense'"),
        (["prefil"], "prefill"),
        (["ceil", "--size", "huge"], "no size is called 'huge'"),
        (["ceil", "--repeats", "0"], "at least one"),
        (["ceil", "--device", "cuda"], "torch sees no CUDA device"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(words) == 2
    assert says in capsys.readouterr().err
