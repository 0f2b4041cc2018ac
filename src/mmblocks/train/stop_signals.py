"""SIGTERM, SIGUSR1 and SIGHUP, which clusters send before they end a job: finish the step, save, and end.

Before every step processes agree whether one of them has received a signal, so that all stop at the same step. Where
nothing would be lost (waiting for data, measuring records before the first step) a signal ends the wait at once.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class StopRequested(BaseException):
    """A signal has come where it is obeyed at once. Never leaves this package."""


@dataclass(slots=True)
class StopRequest:
    """Whether this process has received a signal to stop, which one, and whether it may stop at once."""

    name: str | None = None
    _at_once: bool = False

    def __bool__(self) -> bool:
        return self.name is not None

    @contextmanager
    def raise_at_once(self) -> Iterator[None]:
        """In this block a signal raises `StopRequested`."""
        before, self._at_once = self._at_once, True
        try:
            if self:
                raise StopRequested(self.name)
            yield
        finally:
            self._at_once = before

    @contextmanager
    def defer_raise(self) -> Iterator[None]:
        """In this block a signal is only noted."""
        before, self._at_once = self._at_once, False
        try:
            yield
        finally:
            self._at_once = before

    def request_stop(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal; later ones change nothing."""
        self.name = self.name or signal.Signals(number).name
        if self._at_once:
            self._at_once = False
            raise StopRequested(self.name)


@contextmanager
def listen_for_signals() -> Iterator[StopRequest]:
    """Handle the signals during a run. What the program ignores, as under nohup, stays ignored."""
    stopping = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python allows no handlers
        yield stopping
        return
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stopping.request_stop) for number in handled}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def leave_signals_to_parent(worker: int) -> None:
    """Let data worker `worker` survive signals that are sent to the whole job, until its parent process ends it.

    The parent saves its state meanwhile, and would take a dead worker for a failure. It ends workers by SIGTERM itself, so
    that signal is obeyed only when the parent has sent it.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()

    def end_with_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            continue
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=end_with_parent, daemon=True).start()
