"""What can be counted without a clock: FLOPs, bytes kept for backward, copies, rows that meet the vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmblocks.compat import make_flop_counter

COPIES = frozenset(("copy_", "clone", "contiguous", "_to_copy", "cat", "masked_scatter", "index_copy"))
"""Operators that only move what is there already into new memory."""


def count_flops(run: Callable[[], Any]) -> int:
    """FLOPs of what `run` computes, backward included where it runs one."""
    with make_flop_counter() as counter:
        run()
    return counter.get_total_flops()


def count_flops_in_modules(run: Callable[[], Any], modules: Iterable[nn.Module]) -> int:
    """FLOPs inside calls of these modules, of which none may call another."""
    spent: list[int] = []
    with make_flop_counter() as counter, ExitStack() as hooked:

        def enter(*_: object) -> None:
            spent.append(-counter.get_total_flops())

        def leave(*_: object) -> None:
            spent.append(counter.get_total_flops())

        for module in modules:
            hooked.callback(module.register_forward_pre_hook(enter).remove)
            hooked.callback(module.register_forward_hook(leave).remove)
        run()
    return sum(spent)


@contextmanager
def count_rows(module: nn.Module) -> Iterator[Counter[str]]:
    """Counts the rows that a module is given."""
    found: Counter[str] = Counter()

    def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found["rows"] += args[0].shape[:-1].numel()
        found["calls"] += 1

    handle = module.register_forward_pre_hook(count)
    try:
        yield found
    finally:
        handle.remove()


class Between(TorchDispatchMode):
    """Operators between the end of one module and the beginning of another that make numbers, and how many they make.

    Tables of integers are not counted.
    """

    def __init__(self, after: nn.Module, before: nn.Module) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()
        self.open = False
        self._modules = (after, before)
        self._handles: list[Any] = []

    def __enter__(self) -> Between:
        after, before = self._modules
        self._handles = [
            after.register_forward_hook(lambda *_: self._set_open(True)),
            before.register_forward_pre_hook(lambda *_: self._set_open(False)),
        ]
        return super().__enter__()

    def __exit__(self, *fault: object) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*fault)

    def _set_open(self, is_open: bool) -> None:
        self.open = is_open

    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if self.open and isinstance(made, Tensor) and made.is_floating_point():
            name = func.overloadpacket.__name__
            self.calls[name] += 1
            self.elements[name] += made.numel()
        return made

    @property
    def copies(self) -> int:
        """How many of them were `COPIES`."""
        return sum(count for name, count in self.calls.items() if name in COPIES)
