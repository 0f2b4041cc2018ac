"""SIGTERM, SIGUSR1 and SIGHUP, which clusters send before they end a job: finish the step, save, and end.

Processes agree before every step whether one of them was asked, so that all stop at the same one. Where nothing would be
lost (waiting for data, measuring records before the first step) a signal ends the wait at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class StopRequested(BaseException):
    """A signal came where it is acted upon at once. Never leaves this package."""


@dataclass(slots=True)
class StopRequest:
    """Whether this process was asked to stop, by which signal, and whether it may stop where it is."""

    name: str | None = None
    _at_once: bool = False

    def __bool__(self) -> bool:
        return self.name is not None

    @contextmanager
    def raise_at_once(self) -> Iterator[None]:
        """In this block a signal raises `StopAsked`."""
        before, self._at_once = self._at_once, True
        try:
            if self:
                raise StopRequested(self.name)
            yield
        finally:
            self._at_once = before

    @contextmanager
    def defer_raise(self) -> Iterator[None]:
        """In this block a signal is noted only."""
        before, self._at_once = self._at_once, False
        try:
            yield
        finally:
            self._at_once = before

    def request_stop(self, number: int, frame: FrameType | None = None) -> None:
        """A signal has come. One that comes again changes nothing."""
        self.name = self.name or signal.Signals(number).name
        if self._at_once:
            self._at_once = False
            raise StopRequested(self.name)


@contextmanager
def listen_for_signals() -> Iterator[StopRequest]:
    """Take the signals while a run lasts. What the program ignores, as under nohup, stays ignored."""
    stopping = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python allows no handlers
        yield stopping
        return
    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stopping.request_stop) for number in taken}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def leave_signals_to_parent(worker: int) -> None:
    """In data worker `worker`: have it outlive signals that its whole job is sent, until the process that reads from it ends it.

    That process saves meanwhile, and would take a worker that died for a failure. It ends workers by SIGTERM itself, so
    this signal is looked at for who has sent it.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        continue
    os._exit(0)
