"""What a run says while it works: a progress line for people, a line of JSON per report for programs."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """Progress of one stage: loss, tokens per second and time left on screen, the same figures in `metrics.jsonl`."""

    def __init__(self, stage: str, first: int, steps: int, metrics: Path, log_every: int) -> None:
        self.stage, self.steps, self.log_every = stage, steps, log_every
        self._bar = tqdm(total=steps, initial=first, desc=stage, unit="step", dynamic_ncols=True)
        self._file = metrics.open("a", encoding="utf-8")
        self._losses: deque[float] = deque(maxlen=log_every)
        self._tokens = 0
        self._since = time.perf_counter()

    def report(self, step: int, loss: float, tokens: int, **others: float) -> None:
        """Count one finished step; write a line of metrics every `log_every` steps and after the last."""
        self._losses.append(loss)
        self._tokens += tokens
        self._bar.update()
        if (step + 1) % self.log_every and step + 1 != self.steps:
            return
        now = time.perf_counter()
        row: dict[str, Any] = {
            "stage": self.stage,
            "step": step + 1,
            "loss": sum(self._losses) / len(self._losses),
            "tokens_per_s": self._tokens / max(now - self._since, 1e-9),
            **others,
        }
        self._tokens, self._since = 0, now
        self._bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens_per_s']:.0f} tokens/s")
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._file.close()
