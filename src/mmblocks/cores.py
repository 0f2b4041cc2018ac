"""How many processor cores there are to work with. Importing this imports no torch."""

import os


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_own_cores() -> int:
    """This process' share of them, beside the other processes that torchrun started on this machine; at least 1."""
    return max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
