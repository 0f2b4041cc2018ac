"""Rows made of other rows: every way is the reference, forward and backward, and copies nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from mmblocks.batch import GatherTable
from mmblocks.errors import ConfigError
from mmblocks.ops.choice import use_backends
from mmblocks.ops.gather_lerp import gather_lerp, gelu_gather_lerp, with_transpose
from mmblocks.ops.gather_lerp.selftest import run_selftest

WAYS = ["bag", "reference"]
COPIES = {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy"}


def taps_of(rows, weights, size):
    return with_transpose(GatherTable(torch.tensor(rows), torch.tensor(weights, dtype=torch.float32), size))


def bilinear(frames, side, new_side):
    """Taps of LLaVA-OneVision's frame pooling, by the definition of a bilinear sample."""
    centres = ((torch.arange(new_side, dtype=torch.float64) + 0.5) * side / new_side - 0.5).clamp(0)
    low = centres.floor().long()
    high, part = (low + 1).clamp(max=side - 1), centres - low
    rows = [r[:, None] * side + c[None, :] for r in (low, high) for c in (low, high)]
    weights = [r[:, None] * c[None, :] for r in (1 - part, part) for c in (1 - part, part)]
    table, shares = torch.stack(rows, -1).view(-1, 4), torch.stack(weights, -1).view(-1, 4).float()
    frame = torch.arange(frames).repeat_interleave(len(table)) * side**2
    return with_transpose(
        GatherTable(table.repeat(frames, 1) + frame[:, None], shares.repeat(frames, 1), frames * side**2)
    )


def some_taps(n=7, k=3, size=5):
    weights = torch.rand(n, k) * (torch.rand(n, k) > 0.3)
    return with_transpose(GatherTable(torch.randint(size, (n, k)) * (weights > 0), weights, size))


def value_and_gradient(op, x, taps, pulled):
    x = x.detach().requires_grad_()
    value = op(x, taps)
    return value.detach(), *torch.autograd.grad(value, x, pulled)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_is_the_weighted_sum_of_the_rows_it_names(way):
    x = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    taps = taps_of([[0, 1], [2, 0], [1, 1]], [[0.5, 0.5], [1, 0], [2, -1]], 3)
    with use_backends(gather_lerp=way):
        assert gather_lerp(x, taps).tolist() == [[1.5, 15.0], [3.0, 30.0], [2.0, 20.0]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("new_side", [14, 7])
def test_bilinear_taps_pool_frames_as_interpolate_does(way, new_side):
    x, pulled = torch.randn(2, 27, 27, 6), torch.randn(2 * new_side**2, 6)

    def interpolate(x, _):
        maps = x.view(2, 27, 27, 6).permute(0, 3, 1, 2)
        return F.interpolate(maps, size=(new_side, new_side), mode="bilinear").permute(0, 2, 3, 1).reshape(-1, 6)

    with use_backends(gather_lerp=way):
        got = value_and_gradient(gather_lerp, x.view(-1, 6), bilinear(2, 27, new_side), pulled)
    want = value_and_gradient(interpolate, x.view(-1, 6), None, pulled)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=5e-6)  # interpolate's own coordinates are float32


def test_every_way_agrees_with_the_reference_in_float64():
    results = list(run_selftest("cpu"))
    assert [r for r in results if not r.is_acceptable] == []
    assert {r.backend for r in results if r.error is not None} == {"bag", "reference"}
    assert {reason for r in results if r.backend == "triton" for reason in r.reasons} >= {
        "its kernels run on cuda, and x is on cpu"
    }


@pytest.mark.gpu
def test_every_way_agrees_with_the_reference_in_float64_on_a_gpu():
    results = list(run_selftest("cuda"))
    assert [r for r in results if not r.is_acceptable] == []
    assert {r.backend for r in results if r.error is not None} == {"triton", "bag", "reference"}


@pytest.mark.parametrize("op", [gather_lerp, gelu_gather_lerp])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("beforehand", [True, False])
def test_gradients_agree_with_numbers(op, way, beforehand):
    x, taps = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), some_taps()
    taps = taps if beforehand else GatherTable(taps.rows, taps.weights, taps.size)
    with use_backends(gather_lerp=way):
        assert torch.autograd.gradcheck(lambda x: op(x, taps), x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(way, dtype):
    x, taps = torch.randn(5, 3).to(dtype), some_taps()
    with use_backends(gather_lerp=way):
        got = gather_lerp(x, taps)
    want = (x[taps.rows].double() * taps.weights[..., None]).sum(1)
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-7)  # rounded once, at the end


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "k", "size"), [(0, 4, 5), (3, 0, 5), (3, 2, 0), (0, 0, 0)])
def test_nothing_gathered_is_zeros_with_a_gradient(way, n, k, size):
    x, taps = (
        torch.randn(size, 4, requires_grad=True),
        with_transpose(GatherTable(torch.zeros(n, k).long(), torch.zeros(n, k), size)),
    )
    with use_backends(gather_lerp=way):
        out = gelu_gather_lerp(x, taps)
    assert torch.equal(out, torch.zeros(n, 4))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.zeros(size, 4))


def test_whole_rows_are_moved_to_the_bit():
    x = torch.randn(6, 3).to(torch.bfloat16)
    assert torch.equal(gather_lerp(x, taps_of([[4], [0], [4]], [[1], [1], [1]], 6)), x[[4, 0, 4]])
    assert torch.equal(gather_lerp(x, taps_of([[4], [0]], [[1], [0]], 6)), torch.stack([x[4], 0 * x[0]]))


def test_a_gradient_that_is_one_number_everywhere_is_taken():
    x, taps = torch.randn(5, 3, requires_grad=True), some_taps()
    gather_lerp(x, taps).sum().backward()
    want = torch.zeros(5).index_add_(0, taps.rows.flatten(), taps.weights.flatten())
    torch.testing.assert_close(x.grad, want[:, None].expand(5, 3))


# Turned round -------------------------------------------------------------------------------------------------------


def test_turned_taps_name_for_each_row_those_that_read_it():
    back = taps_of([[0, 1], [1, 2], [1, 0]], [[0.5, 0.25], [1, 2], [3, 0]], 4).transpose
    assert back.size == 3
    assert back.rows.tolist() == [[0, 0, 0], [0, 1, 2], [1, 0, 0], [0, 0, 0]]
    assert back.weights.tolist() == [[0.5, 0, 0], [0.25, 1, 3], [2, 0, 0], [0, 0, 0]]


def test_turning_taps_twice_gives_the_same_matrix():
    def dense(taps):
        matrix = torch.zeros(len(taps.rows), taps.size, dtype=torch.float64)
        return matrix.scatter_add_(1, taps.rows, taps.weights.double())

    taps = some_taps(30, 4, 12)
    torch.testing.assert_close(dense(taps.transpose), dense(taps).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(dense(with_transpose(taps.transpose).transpose), dense(taps), rtol=0, atol=1e-12)


# What it costs ------------------------------------------------------------------------------------------------------


def calls(run):
    """Names of the operators that torch runs, each with the shape of its first input."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        run()
    return [(event.name, event.input_shapes[0]) for event in seen.events() if event.input_shapes]


def copies(run):
    """Those that copy rows; embedding_bag copies a list of its n offsets."""
    return [name for name, shape in calls(run) if name in COPIES and len(shape) > 1]


@pytest.mark.parametrize("op", [gather_lerp, gelu_gather_lerp])
def test_pooling_copies_no_row_forward_or_backward(op):
    x, taps, pulled = torch.randn(729, 8, requires_grad=True), bilinear(1, 27, 14), torch.randn(196, 8)
    assert copies(lambda: torch.autograd.grad(op(x, taps), x, pulled)) == []
    assert copies(lambda: x.detach().t().contiguous()) == ["aten::contiguous", "aten::clone", "aten::copy_"]


def saved_by(run):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run()
    return saved


def test_only_taps_are_kept_for_backward_and_with_gelu_what_went_into_it():
    x, taps = torch.randn(729, 8, requires_grad=True), bilinear(1, 27, 14)
    table = [taps.transpose.rows.data_ptr(), taps.transpose.weights.data_ptr()]
    assert [t.data_ptr() for t in saved_by(lambda: gather_lerp(x, taps))] == table
    assert [t.data_ptr() for t in saved_by(lambda: gelu_gather_lerp(x, taps))] == [*table, x.data_ptr()]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's own tracing
def test_torch_library_finds_the_operators_well_made():
    taps = some_taps()
    x, table = (
        torch.randn(5, 3, requires_grad=True),
        (taps.rows, taps.weights, taps.transpose.rows, taps.transpose.weights),
    )
    torch.library.opcheck(torch.ops.mmblocks.gather_lerp.default, (x, *table, True, "bag"))


def test_sizes_are_known_without_data():
    x, taps = torch.empty(5, 3, device="meta", requires_grad=True), some_taps().to("meta")
    out = gelu_gather_lerp(x, taps)
    out.sum().backward()
    assert (out.shape, x.grad.shape) == ((7, 3), (5, 3))


# Bad input ----------------------------------------------------------------------------------------------------------


def test_a_way_that_cannot_run_says_why():
    x = torch.randn(5, 3, dtype=torch.float64)
    with (
        use_backends(gather_lerp="triton"),
        pytest.raises(ConfigError, match=r"x is float64; its kernels run on cuda, and x is on cpu"),
    ):
        gather_lerp(x, some_taps())


def test_taps_of_another_size_are_refused():
    with pytest.raises(AssertionError, match="terms of 5 rows meet 4"):
        gather_lerp(torch.randn(4, 3), some_taps())
