"""Few rows are computed by graphs of fixed sizes. What a graph is made of is given here, so that no GPU is needed."""

import copy
import logging
import pickle
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmblocks.ops.choice import use_backends
from mmblocks.ops.graphs import BUCKETS, CUDAGraphed


class Shelf:
    """Captures on the CPU as CUDA graphs do: one place for the input, one for the result, overwritten every time."""

    def __init__(self, pause_s: float = 0) -> None:
        self.inputs: list[Tensor] = []
        self.pause_s = pause_s

    @property
    def sizes(self) -> list[int]:
        return [len(static) for static in self.inputs]

    def __call__(self, function: Any, static: Tensor) -> Any:
        self.inputs.append(static)
        result = function(static)

        def replay() -> Tensor:
            time.sleep(self.pause_s)
            return result.copy_(function(static))

        return replay


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = weights()
        self.encoded = CUDAGraphed(self.encoder)


def weights() -> nn.Module:
    return nn.Linear(3, 2).requires_grad_(False)


def captured(module: nn.Module | None = None, **settings: Any) -> tuple[CUDAGraphed, Shelf]:
    shelf = Shelf(settings.pop("pause_s", 0))
    return CUDAGraphed(module or weights(), capture=shelf, device_type="cpu", **settings), shelf


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 3), (8, 8), (9, 10), (11, 12), (15, 16), (23, 24), (32, 32)])
def test_rows_are_filled_up_to_the_next_bucket_and_cut_back(rows: int, size: int) -> None:
    run, shelf = captured()
    x = torch.randn(rows, 3)
    torch.testing.assert_close(run(x), run.module(x))
    assert shelf.sizes == [size]


@pytest.mark.parametrize("rows", [0, 13, 17, 33, 100])
def test_numbers_of_rows_far_from_a_bucket_run_as_they_are(rows: int) -> None:
    run, shelf = captured()
    x = torch.randn(rows, 3)
    assert torch.equal(run(x), run.module(x))
    assert not shelf.sizes
    assert f"close enough to {rows} rows" in run.reasons_against(x)[0]


def test_buckets_and_the_largest_waste_are_settings() -> None:
    run, shelf = captured(buckets=(8, 2), waste=1.0)
    assert [run.find_bucket(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [2, 2, None, 8, 8, 8, None]
    run(torch.randn(5, 3))
    assert shelf.sizes == [8]
    assert [CUDAGraphed(weights()).find_bucket(n) for n in BUCKETS] == list(BUCKETS)


def test_a_bucket_is_captured_once() -> None:
    run, shelf = captured()
    for rows in (9, 10, 9, 10):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(run(x), run.module(x))
    assert shelf.sizes == [10]


def test_padding_is_zero_whatever_was_there_before() -> None:
    run, shelf = captured()
    run(torch.full((10, 3), torch.nan))
    run(torch.ones(9, 3))
    assert shelf.inputs[0].tolist() == [[1.0] * 3] * 9 + [[0.0] * 3]


def test_results_belong_to_the_caller() -> None:
    run, _ = captured()
    first = run(torch.ones(2, 3))
    kept = first.clone()
    run(torch.zeros(2, 3))
    assert torch.equal(first, kept)


def test_weights_that_change_in_place_are_seen() -> None:
    run, shelf = captured()
    x = torch.randn(2, 3)
    run(x)
    run.module.weight.data.add_(1)  # type: ignore[union-attr, operator]
    assert torch.equal(run(x), run.module(x))
    assert shelf.sizes == [2]


def test_weights_that_move_are_captured_anew_and_what_read_the_old_ones_is_dropped() -> None:
    run, shelf = captured()
    x = torch.randn(2, 3)
    run(x)
    run(x[:1])
    run.module.load_state_dict({k: v + 1 for k, v in run.module.state_dict().items()}, assign=True)
    run.module.requires_grad_(False)
    assert torch.equal(run(x), run.module(x))
    assert shelf.sizes == [2, 1, 2]
    assert len(run._graphs) == 1


def test_a_part_that_is_replaced_is_noticed() -> None:
    run, shelf = captured(nn.Sequential(weights()))
    x = torch.randn(2, 3)
    run(x)
    run.module[0] = weights()  # type: ignore[operator]
    assert torch.equal(run(x), run.module(x))
    assert shelf.sizes == [2, 2]


def test_everything_that_changes_the_computation_has_a_graph_of_its_own() -> None:
    run, shelf = captured(nn.Sequential(nn.Flatten(), weights()).eval())
    x = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(x).dtype == torch.bfloat16
    run(x)
    run(x.view(2, 1, 3))
    with use_backends("reference"):
        run(x)
    run.module.train()
    run(x)
    assert len(shelf.sizes) == 5
    run.module.eval()
    run(x)
    assert len(shelf.sizes) == 5


def test_only_the_graphs_used_last_are_kept() -> None:
    run, shelf = captured(keep=2)
    for rows in (1, 2, 1, 3, 1, 2):
        run(torch.randn(rows, 3))
    assert shelf.sizes == [1, 2, 3, 2]
    run.drop_graphs()
    run(torch.randn(2, 3))
    assert shelf.sizes == [1, 2, 3, 2, 2]


def test_nothing_that_learns_is_captured() -> None:
    run, shelf = captured(nn.Linear(3, 2))
    x = torch.randn(2, 3)
    run(x).sum().backward()
    assert run.module.weight.grad is not None
    assert run.reasons_against(x) == ["gradients are wanted"]
    with torch.no_grad():
        run(x)
    assert shelf.sizes == [2]


def test_a_frozen_module_is_captured_wherever_its_input_wants_no_gradient() -> None:
    run, shelf = captured()
    assert not run(torch.randn(2, 3)).requires_grad
    assert run(torch.randn(2, 3, requires_grad=True)).requires_grad
    assert shelf.sizes == [2]


def test_a_graph_captured_in_inference_mode_serves_outside_of_it() -> None:
    run, shelf = captured()
    x = torch.randn(2, 3)
    with torch.inference_mode():
        run(torch.randn(2, 3))
    features = run(x)
    nn.Linear(2, 1)(features).sum().backward()  # an inference tensor could not be saved for it
    assert shelf.sizes == [2]


def test_inputs_on_another_device_run_as_they_are() -> None:
    run = CUDAGraphed(weights())
    assert run.reasons_against(torch.ones(1, 3)) == ["the input is on cpu, and graphs are for cuda"]
    assert run(torch.ones(1, 3)).shape == (1, 2)


def test_weights_that_are_gathered_at_every_call_are_not_captured() -> None:
    class Sharded(Tensor):
        pass

    module = nn.Linear(3, 2, bias=False)
    module.weight = nn.Parameter(torch.zeros(2, 3).as_subclass(Sharded), requires_grad=False)
    run, shelf = captured(module)
    assert "a weight is a Sharded" in run.reasons_against(torch.ones(1, 3))[0]
    run(torch.ones(1, 3))
    assert not shelf.sizes


def test_while_compiling_the_module_itself_is_traced() -> None:
    run, shelf = captured()
    x = torch.randn(2, 3)
    torch.testing.assert_close(torch.compile(lambda x: run(x), backend="eager", fullgraph=True)(x), run.module(x))
    assert not shelf.sizes


def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(function: Any, static: Tensor) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    run = CUDAGraphed(weights(), capture=refuse, device_type="cpu")
    x = torch.randn(2, 3)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(x), run.module(x))
        assert torch.equal(run(x), run.module(x))
    assert [record.getMessage() for record in caplog.records] == [
        "Linear runs without CUDA graphs: it could not be captured: operation not permitted when stream is capturing"
    ]
    assert run.reasons_against(x)


def test_a_copy_starts_without_graphs_and_reads_its_own_weights() -> None:
    run, shelf = captured()
    x = torch.randn(2, 3)
    run(x)
    other = copy.deepcopy(run)
    other.module.weight.data.zero_()  # type: ignore[union-attr, operator]
    assert torch.equal(other(x), other.module(x))
    assert not torch.equal(other(x), run(x))
    assert shelf.sizes == [2]  # the copy has a shelf of its own


def test_a_copy_inside_a_model_shares_the_models_copy() -> None:
    model = Model()
    other = copy.deepcopy(model)
    assert other.encoded.module is other.encoder is not model.encoder
    assert set(model.state_dict()) == {"encoder.weight", "encoder.bias"}
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded.encoded.module is loaded.encoder


def test_threads_get_the_results_of_their_own_rows() -> None:
    run, _ = captured(pause_s=0.002)
    wrong: list[int] = []

    def ask(number: int) -> None:
        x = torch.full((2, 3), float(number))
        for _ in range(5):
            if not torch.equal(run(x), run.module(x)):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# On a GPU -----------------------------------------------------------------------------------------------------------


def on_gpu() -> nn.Module:
    body = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64))
    return body.to("cuda", torch.bfloat16).requires_grad_(False)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 7, 9, 32, 33])
def test_a_graph_gives_what_the_module_gives(rows: int) -> None:
    run = CUDAGraphed(on_gpu())
    for _ in range(3):
        x = torch.randn(rows, 16, 64, device="cuda", dtype=torch.bfloat16)
        torch.testing.assert_close(run(x), run.module(x), rtol=1e-2, atol=1e-2)  # bf16; another kernel for padded rows
    assert len(run._graphs) == (1 if rows < 33 else 0)


@pytest.mark.gpu
def test_a_graph_reads_weights_where_they_lie_and_is_dropped_when_they_move() -> None:
    run = CUDAGraphed(on_gpu())
    x = torch.randn(2, 64, device="cuda", dtype=torch.bfloat16)
    run(x)
    for p in run.module.parameters():
        p.data.mul_(0.5)
    torch.testing.assert_close(run(x), run.module(x), rtol=0, atol=0)
    run.module.float()
    torch.testing.assert_close(run(x.float()), run.module(x.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_what_waits_for_the_device_cannot_be_captured_and_runs_as_it_is() -> None:
    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sum().item()

    run = CUDAGraphed(Waits())
    x = torch.ones(2, 3, device="cuda")
    assert torch.equal(run(x), x * 6)
    assert run.reasons_against(x)
    assert torch.equal(run(x), x * 6)


@pytest.mark.gpu
def test_threads_with_streams_of_their_own_get_their_own_rows() -> None:
    run = CUDAGraphed(on_gpu())
    wrong: list[int] = []

    def ask(number: int) -> None:
        x = torch.full((2, 64), float(number), device="cuda", dtype=torch.bfloat16)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                if not torch.equal(run(x), run(x)):
                    wrong.append(number)
                torch.testing.assert_close(run(x), run.module(x), rtol=1e-2, atol=1e-2)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
