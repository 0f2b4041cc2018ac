"""What the folder of a run tells about it: its recipe and its metrics."""

import json
from pathlib import Path
from typing import Any

from mmblocks.errors import ConfigError

METRICS_FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none where nothing was measured. A last line cut by a kill is left out."""
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as cause:
            if number < len(lines):
                raise ConfigError(f"{path}:{number}: this line is not JSON ({cause}).") from cause
    return rows


def read_last_loss(folder: Path) -> float | None:
    """The last training loss that a run has written."""
    return next((float(row["loss"]) for row in reversed(read_metrics(folder)) if "loss" in row), None)


def read_final_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """The last value of every metric by stage."""
    final: dict[str, dict[str, Any]] = {}
    for row in read_metrics(folder):
        final.setdefault(str(row.get("stage", "")), {}).update({k: v for k, v in row.items() if k != "stage"})
    return final
