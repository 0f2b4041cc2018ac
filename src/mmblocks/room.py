"""Whether weights fit into the memory of this machine, before they are made. Importing this imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

MEMINFO, STATM = Path("/proc/meminfo"), Path("/proc/self/statm")
GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_component_fits(name: str, make: Callable[[], nn.Module]) -> None:
    """Make a component on the meta device, which needs no memory, and refuse one whose weights this machine cannot hold.

    Does nothing if torch's default device is not the CPU. Errors of `make` are passed on.
    """
    import torch

    if torch.get_default_device().type != "cpu":
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        part = make()
    require_room({name: sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))})


def require_room(bytes_by_part: Mapping[str, int]) -> None:
    """Raise `ConfigError` with the sizes where parts take more than the memory of this machine.

    Nothing is refused if torch's default device is not the CPU.
    """
    import torch

    if torch.get_default_device().type != "cpu":
        return
    total, room = sum(bytes_by_part.values()), find_memory_limit()
    if room is not None and total > room:
        sizes = ", ".join(f"{part} {_format_gigabytes(size)}" for part, size in bytes_by_part.items())
        raise ConfigError(
            f"these weights do not fit into the memory of this machine, {_format_gigabytes(room)}: {sizes}. "
            "Write smaller sizes (dim, depth, vocab_size, queries and the like), or use a machine with more memory."
        )


def find_memory_limit() -> int | None:
    """Memory that this process may use: that of the machine with its swap space, or a lower limit."""
    limits = (_read_installed_bytes(), _read_cgroup_limit(), _read_process_limit())
    return min((limit for limit in limits if limit is not None), default=None)


@cache
def _read_installed_bytes() -> int | None:
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines())
        return 1024 * sum(int(lines[name].split()[0]) for name in ("MemTotal", "SwapTotal") if name in lines)
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


@cache
def _read_cgroup_limit() -> int | None:
    """The limit of a container or a job (control groups, version 2)."""
    try:
        text = GROUP_LIMIT.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _read_process_limit() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    used = int(STATM.read_text(encoding="utf-8").split()[0]) * resource.getpagesize() if STATM.is_file() else 0
    return max(0, soft - used)


def _format_gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
