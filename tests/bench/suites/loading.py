"""What it takes to load a checkpoint, beside transformers' from_pretrained of the same files, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from mmblocks.errors import MMBlocksError
from mmblocks.model.convert.transformers.export import export_hf
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run
from tests.bench.suites.sizes import make_model

NAME = "loading"
TIME, PEAK = "processor time", "peak memory"
TYPES = (torch.bfloat16, torch.float32)
PROGRAM = """\
import json, resource, sys
import torch
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionForConditionalGeneration
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

side, folder, dtype = sys.argv[1:]
torch.set_num_threads(1)
if side == "ours":
    import mmblocks
    import mmblocks.model.convert.transformers.llava_onevision
    import mmblocks.model.loading

def read_peak():  # of this program alone; ru_maxrss begins with that of the parent
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before, peak_before = resource.getrusage(resource.RUSAGE_SELF), read_peak()
kind = getattr(torch, dtype)
if side == "ours":
    model = mmblocks.load(folder, dtype=kind)
else:
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=kind)
after = resource.getrusage(resource.RUSAGE_SELF)
seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps([seconds, read_peak() - peak_before]))
"""


def measure(run: Run) -> Iterator[Row]:
    """A LLaVA-OneVision stored in bfloat16, loaded in that type and in float32, in turns with transformers.

    Memory is the most that is resident beyond what importing takes, pages of mapped files among them: values that are not
    converted stay in these files, and are read when they are first used.
    """
    with TemporaryDirectory() as folder:
        export_hf(make_model(run.scale, torch.device("cpu"), torch.bfloat16), Path(folder))
        for dtype in TYPES:
            name = str(dtype).removeprefix("torch.")
            run.require_time(before=name)
            rounds = [[_load(side, folder, name) for side in ("ours", "peer")] for _ in range(run.repeats)]
            for number, (quantity, unit) in enumerate(((TIME, "s"), (PEAK, "bytes"))):
                ours, peer = (median(sides[i][number] for sides in rounds) for i in (0, 1))
                scenario = f"stored as bfloat16, loaded as {name}"
                yield replace(run, dtype=dtype).row(NAME, scenario, quantity, unit, ours, peer, setting="as shipped")


def _load(side: str, folder: str, dtype: str) -> tuple[float, int]:
    """Processor seconds and bytes of one load."""
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, side, folder, dtype],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise MMBlocksError(f"loading failed:\n{child.stderr}")
    seconds, peak = json.loads(child.stdout.splitlines()[-1])
    return seconds, peak
