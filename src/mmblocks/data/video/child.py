"""The one reader process of this process: started when first needed, ended when it fails and at exit, left at a fork."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import IO, Any

import numpy as np

from mmblocks.data.video.reader import LENGTHS
from mmblocks.errors import MachineError

START_S = 120.0  # to import PyAV and numpy, on a busy machine from a slow disk
_GRACE_S = 10.0  # beyond the deadline, after which a reader without an owner ends itself
_WATCH_MS = 20
_PIPE_BYTES = 1 << 20
# The same sys.path as here, as multiprocessing's spawned processes have it; Ctrl-C is for the parent from the start on.
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = sys.argv[1:]; "
    "from mmblocks.data.video.reader import main; main()"
)


class ReadFailed(Exception):
    """The reader gave no answer and was ended: it hung, died or grew. Never leaves this folder."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again  # whether a new process might do better


class Watch:
    """How long a read may take and how much memory the process may hold meanwhile."""

    def __init__(self, deadline_s: float, memory_bytes: float) -> None:
        self.deadline_s, self.memory_bytes = deadline_s, memory_bytes
        self.spent_s = 0.0
        self._last = time.monotonic()

    def look(self, pid: int) -> None:
        now = time.monotonic()
        self.spent_s += min(now - self._last, 1.0)  # a longer gap is this process having been stopped, not the reader
        self._last = now
        if self.spent_s > self.deadline_s:
            raise ReadFailed(f"reading it took longer than {self.deadline_s:g} s", again=False)
        if resident_bytes(pid) > self.memory_bytes:
            raise self.too_big()

    def too_big(self) -> ReadFailed:
        limit = f"{self.memory_bytes / 2**30:g} GiB"
        return ReadFailed(f"reading it took more than {limit} of memory, after {self.spent_s:.1f} s", again=True)


def resident_bytes(pid: int) -> int:
    """Memory that a process holds; 0 where /proc does not tell (macOS), or for a process that is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 (looked at fifty times per second)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class Child:
    """A reader process and the two ends of its pipes."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", _START, *sys.path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._requests, self._answers = _pipe(self.process.stdin), _pipe(self.process.stdout)
        try:
            self._receive(Watch(START_S, float("inf")))
        except ReadFailed as cause:
            self.end(at_once=True)
            raise MachineError(
                f"the process that reads clips did not start ({cause}): {sys.executable} must be able to import "
                "mmblocks; what it printed stands above."
            ) from cause

    def ask(self, request: Mapping[str, Any], content: bytes, watch: Watch) -> tuple[dict[str, Any], np.ndarray]:
        """The reader's answer and the bytes that came with it. Raises `ReadFailed`."""
        header = json.dumps({**request, "alarm_s": watch.deadline_s + _GRACE_S}).encode()
        self._write(LENGTHS.pack(len(header), len(content)) + header + content, watch)
        answer, pixels = self._receive(watch)
        if "memory" in answer:
            raise watch.too_big()
        return answer, pixels

    def end(self, *, at_once: bool) -> None:
        """Close the pipes, which ends an idle reader, and reap it; a busy one is killed."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if not at_once and self._is_gone(after_s=1.0):
            return
        self.process.kill()
        # What a dead network drive holds cannot be killed; Popen reaps it later.
        self._is_gone(after_s=5.0)

    def leave(self) -> None:
        """In a forked process: close the ends that it has inherited. The reader belongs to the parent."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.poll()  # notes that this is no child of ours

    def _is_gone(self, after_s: float) -> bool:
        try:
            self.process.wait(after_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _write(self, data: bytes, watch: Watch) -> None:
        left = memoryview(data)
        while len(left):
            self._await(self._requests, select.POLLOUT, watch)
            try:
                left = left[os.write(self._requests, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._died(watch) from None

    def _receive(self, watch: Watch) -> tuple[dict[str, Any], np.ndarray]:
        header_bytes, pixel_bytes = LENGTHS.unpack(self._read(LENGTHS.size, watch).tobytes())
        header = json.loads(self._read(header_bytes, watch).tobytes())
        watch.look(self.process.pid)  # all pixels of the answer are in its memory now
        return header, self._read(pixel_bytes, watch)

    def _read(self, num_bytes: int, watch: Watch) -> np.ndarray:
        data = np.empty(num_bytes, dtype=np.uint8)
        left = data.data
        while len(left):
            self._await(self._answers, select.POLLIN, watch)
            try:
                num_read = os.readv(self._answers, [left])
            except BlockingIOError:
                continue
            if num_read == 0:
                raise self._died(watch)
            left = left[num_read:]
        return data

    def _await(self, pipe: int, event: int, watch: Watch) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(_WATCH_MS):
            watch.look(self.process.pid)

    def _died(self, watch: Watch) -> ReadFailed:
        self._is_gone(after_s=5.0)
        how = _how(self.process.returncode)
        return ReadFailed(f"the process reading it {how} after {watch.spent_s:.1f} s", again=True)


def _pipe(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # the user's pipes may be limited to less
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return pipe.fileno()


def _how(returncode: int | None) -> str:
    if returncode is None:
        return "closed its pipe"
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    return f"was ended by {signal.Signals(-returncode).name}"


class Home:
    """Where a process keeps its child. One read at a time; threads wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._at_exit: Finalize | None = None

    @property
    def pid(self) -> int | None:
        """Of the reader that runs, if any."""
        return None if self._child is None else self._child.process.pid

    def ask(self, request: Mapping[str, Any], content: bytes, watch: Watch) -> tuple[dict[str, Any], np.ndarray]:
        with self._lock:
            child = self._running()
            try:
                return child.ask(request, content, watch)
            except BaseException:  # Ctrl-C as well: half an answer in the pipe would be taken for the next one's
                self._child = None
                child.end(at_once=True)
                raise

    def _running(self) -> Child:
        if self._child is not None and self._child.process.poll() is not None:  # died while nobody asked
            self._child.end(at_once=True)
            self._child = None
        if self._child is None:
            self._child = Child()
            # Not atexit: a data worker ends without it.
            self._at_exit = self._at_exit or Finalize(None, self.close, exitpriority=10)
        return self._child

    def close(self) -> None:
        """End the reader; the next question starts a new one."""
        child, self._child = self._child, None
        if child is not None:
            child.end(at_once=False)

    def after_fork(self) -> None:
        child, self._child = self._child, None
        self._lock, self._at_exit = threading.Lock(), None
        if child is not None:
            child.leave()


HOME = Home()
os.register_at_fork(after_in_child=HOME.after_fork)
