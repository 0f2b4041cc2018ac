"""One thread, one seed and no network for every test; a tiny model to use; other packages' warnings summed up."""

import copy
import gc
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


def pytest_collectstart():
    gc.disable()


def pytest_collection_finish():
    """Modules and collected tests stay until the end: the garbage collector need not go through them again and again."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter):
    """A line for each kind of warning, the most frequent first: what other packages will change next."""
    shown = Counter(
        summed_up(report.message, report.fslocation) for report in terminalreporter.stats.get("warnings", [])
    )
    if shown:
        terminalreporter.section("warnings of other packages")
        for line, count in shown.most_common():
            terminalreporter.write_line(f"{count:5} x {line}")


def summed_up(message, place):
    """The first line of a warning after its path, and the package whose code it points at."""
    _, _, said = str(message).partition(": ")
    parts = Path(str(place[0] if place else "")).parts
    package = parts[parts.index("site-packages") + 1] if "site-packages" in parts else "mmblocks"
    return f"{package}: {said.partition(chr(10))[0][:160]}"


@pytest.fixture(scope="session", autouse=True)
def autograd_begun():
    """The first backward pass starts a thread for each device, after which no process can be forked that runs another: here it
    is before `FakeTensorMode` makes torch believe in a GPU.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_spec():
    """A whole OneVision of some thousand parameters over TinyWorld's words."""
    return {
        "encoder": {"name": "tiny_conv", "view_px": 24, "dim": 16, "widths": [8, 8], "heads": 2},
        "projector": "mlp",
        "pooling": "bilinear",
        "tokenizer": {
            "image": {"name": "anyres_max", "pinpoints": "(1x1),...,(2x2)", "max_tiles": 4},
            "multi_image": "pad_newline",
            "video": {"name": "frames", "max_frames": 4},
        },
        "backbone": {
            "name": "causal_lm",
            "family": "qwen2",
            "text_tokenizer": "mmblocks:tinyworld_text",
            "vocab_size": 640,
            "dim": 32,
            "depth": 2,
            "heads": 4,
            "kv_heads": 2,
            "mlp_dim": 48,
            "max_tokens": 1024,
            "tie_embeddings": True,
        },
        "template": "chatml",
    }


@pytest.fixture(scope="session")
def built_tiny_model(tiny_spec):
    """The tiny model, built once; tests take copies of it, which cost a tenth of a new one."""
    import mmblocks

    return mmblocks.build(tiny_spec, seed=0).eval()


@pytest.fixture
def tiny_model(built_tiny_model):
    """The tiny model with random weights, a copy of its own for every test."""
    return copy.deepcopy(built_tiny_model)
