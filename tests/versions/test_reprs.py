"""Nothing that holds tensors shows their numbers."""

import ast
from pathlib import Path

import torch

import mmblocks
from mmblocks.backbones.last_layer import _FixedCache, _RecordingCache
from mmblocks.batch import Packing, RowIndex

SOURCE = Path(mmblocks.__file__).parent


def holds_tensors(node):
    """Whether a class is a dataclass with a field that is a tensor or holds some."""
    fields = [ast.unparse(part.annotation) for part in node.body if isinstance(part, ast.AnnAssign)]
    is_data = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return is_data and any("Tensor" in field and "Callable" not in field for field in fields)


def test_every_dataclass_with_tensors_is_shown_by_their_shapes():
    classes = [
        node
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    found = [node for node in classes if holds_tensors(node)]
    assert len(found) > 20
    assert [node.name for node in found if "__repr__ = format_by_shape" not in map(ast.unparse, node.body)] == []


def test_a_tensor_is_shown_by_dtype_and_shape():
    assert repr(Packing.from_lengths([3, 4])) == "Packing(cu_seqlens=int32 (3,), max_seqlen=4)"
    assert (
        repr(RowIndex(torch.tensor([1]), (1,)))
        == "RowIndex(index=int64 (1,), counts=(1,), index_host=None, cu_seqlens_host=None)"
    )
    k = torch.arange(12.0).view(1, 1, 3, 4)
    assert repr(_FixedCache(k, k)) == "_FixedCache(k=float32 (1, 1, 3, 4), v=float32 (1, 1, 3, 4))"
    assert repr(_RecordingCache([k])) == "_RecordingCache(seen=[float32 (1, 1, 3, 4)])"
