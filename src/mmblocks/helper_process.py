"""A helper process that works for this one: started when first needed, ended when it fails and at exit, detached at a fork.

Both sides of it. Requests are sent by `HelperClient.send_request` and answered by the function given to `serve_requests`.
A message is the lengths of its two parts (`LENGTHS`), a JSON object, and raw bytes.
"""

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import IO, Any, BinaryIO

from mmblocks.errors import MachineError

LENGTHS = struct.Struct("<IQ")
"""Bytes of the JSON object, bytes of what follows it."""
HelperAnswer = tuple[Mapping[str, Any], Any]
"""A JSON object, and bytes that come with it."""
START_S = 120.0  # to import what it needs, on a busy machine from a slow disk
_GRACE_S = 10.0  # beyond the deadline, after which a helper without an owner ends itself
_WATCH_MS = 20
_PIPE_BYTES = 1 << 20
# The same sys.path as here, as multiprocessing's spawned processes have it; Ctrl-C is for the parent from the start on.
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = sys.argv[1:]; "
    "from {module} import main; main()"
)


class NoAnswerError(Exception):
    """The helper gave no answer and was ended: it hung, died or used too much memory. Callers raise an error of their own."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again  # whether a new process may succeed


class Watchdog:
    """Limits of time and memory for one answer. doing: the work, as errors call it."""

    def __init__(self, deadline_s: float, memory_bytes: float, doing: str) -> None:
        self.deadline_s, self.memory_bytes, self.doing = deadline_s, memory_bytes, doing
        self.spent_s = 0.0
        self._last = time.monotonic()

    def start_timer(self) -> None:
        self._last = time.monotonic()

    def check_limits(self, pid: int) -> None:
        now = time.monotonic()
        self.spent_s += min(now - self._last, 1.0)  # a longer gap is this process having been stopped, not the helper
        self._last = now
        if self.spent_s > self.deadline_s:
            raise NoAnswerError(f"{self.doing} took longer than {self.deadline_s:g} s", again=False)
        if read_resident_bytes(pid) > self.memory_bytes:
            raise self.make_memory_error()

    def make_memory_error(self) -> NoAnswerError:
        limit = f"{self.memory_bytes / 2**30:g} GiB"
        return NoAnswerError(f"{self.doing} took more than {limit} of memory, after {self.spent_s:.1f} s", again=True)


def read_resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 without /proc (macOS), or for a process that has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 (called fifty times per second)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class HelperProcess:
    """A helper process and the two ends of its pipes. work: what it does, as errors call it."""

    def __init__(self, module: str, work: str) -> None:
        command = [sys.executable, "-P", "-c", _START.format(module=module), *sys.path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._requests, self._answers = _prepare_pipe(self.process.stdin), _prepare_pipe(self.process.stdout)
        try:
            self._receive_answer(Watchdog(START_S, float("inf"), "starting"))
        except NoAnswerError as cause:
            self.stop_process(at_once=True)
            raise MachineError(
                f"the process that {work} did not start ({cause}): {sys.executable} must be able to import "
                "mmblocks; what it printed stands above."
            ) from cause

    def send_request(
        self, request: Mapping[str, Any], content: bytes, watch: Watchdog
    ) -> tuple[dict[str, Any], bytearray]:
        """The helper's answer and the bytes that came with it. Raises `NoAnswerError`."""
        header = json.dumps({**request, "alarm_s": watch.deadline_s + _GRACE_S}).encode()
        left = memoryview(LENGTHS.pack(len(header), len(content)) + header + content)
        while len(left):
            self._wait_for_pipe(self._requests, select.POLLOUT, watch)
            try:
                left = left[os.write(self._requests, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._make_exit_error(watch) from None
        answer, content_of_answer = self._receive_answer(watch)
        if "memory" in answer:
            raise watch.make_memory_error()
        return answer, content_of_answer

    def stop_process(self, *, at_once: bool) -> None:
        """Close the pipes, which ends an idle helper, and wait for it; a busy one is killed."""
        self._close_pipes()
        if not at_once and self._has_exited(after_s=1.0):
            return
        self.process.kill()
        # A process that waits for a dead network drive cannot be killed; Popen reaps it later.
        self._has_exited(after_s=5.0)

    def detach_after_fork(self) -> None:
        """In a forked process: close the inherited ends of the pipes. The helper belongs to the parent."""
        self._close_pipes()
        self.process.poll()  # notes that this is no child of ours

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _has_exited(self, after_s: float) -> bool:
        try:
            self.process.wait(after_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _receive_answer(self, watch: Watchdog) -> tuple[dict[str, Any], bytearray]:
        header_bytes, content_bytes = LENGTHS.unpack(self._read_exactly(LENGTHS.size, watch))
        header = json.loads(self._read_exactly(header_bytes, watch))
        watch.check_limits(self.process.pid)  # the whole answer is in its memory now
        return header, self._read_exactly(content_bytes, watch)

    def _read_exactly(self, num_bytes: int, watch: Watchdog) -> bytearray:
        data = bytearray(num_bytes)
        left = memoryview(data)
        while len(left):
            self._wait_for_pipe(self._answers, select.POLLIN, watch)
            try:
                num_read = os.readv(self._answers, [left])
            except BlockingIOError:
                continue
            if num_read == 0:
                raise self._make_exit_error(watch)
            left = left[num_read:]
        return data

    def _wait_for_pipe(self, pipe: int, event: int, watch: Watchdog) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(_WATCH_MS):
            watch.check_limits(self.process.pid)

    def _make_exit_error(self, watch: Watchdog) -> NoAnswerError:
        self._has_exited(after_s=5.0)
        code = self.process.returncode
        if code is None:
            how = "closed its pipe"
        else:
            how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        return NoAnswerError(f"the process {watch.doing} {how} after {watch.spent_s:.1f} s", again=True)


def _prepare_pipe(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # the user's pipes may be limited to less
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return pipe.fileno()


class HelperClient:
    """Holds the one helper of a process for some work. One request at a time; threads wait for each other.

    module: its function `main` runs in the helper and calls `serve_requests`.
    """

    def __init__(self, module: str, work: str) -> None:
        self._module, self._work = module, work
        self._lock = threading.Lock()
        self._child: HelperProcess | None = None
        self._at_exit: Finalize | None = None
        os.register_at_fork(after_in_child=self._reset_after_fork)

    @property
    def pid(self) -> int | None:
        """The process id of the helper, if one runs."""
        return None if self._child is None else self._child.process.pid

    def send_request(
        self, request: Mapping[str, Any], content: bytes, watch: Watchdog
    ) -> tuple[dict[str, Any], bytearray]:
        with self._lock:
            child = self._child
            if child is not None and child.process.poll() is not None:  # it died between two requests
                child.stop_process(at_once=True)
                child = self._child = None
            if child is None:
                child = self._child = HelperProcess(self._module, self._work)
                # Not atexit: a data worker ends without it.
                self._at_exit = self._at_exit or Finalize(None, self.close, exitpriority=10)
            watch.start_timer()  # the time to start a helper does not count
            try:
                return child.send_request(request, content, watch)
            except BaseException:  # Ctrl-C as well: half an answer in the pipe would be read as the next one
                self._child = None
                child.stop_process(at_once=True)
                raise

    def close(self) -> None:
        """End the helper; the next request starts a new one."""
        child, self._child = self._child, None
        if child is not None:
            child.stop_process(at_once=False)

    def _reset_after_fork(self) -> None:
        child, self._child = self._child, None
        self._lock, self._at_exit = threading.Lock(), None
        if child is not None:
            child.detach_after_fork()


# In the helper ------------------------------------------------------------------------------------------------------


def serve_requests(answer: Callable[[dict[str, Any], bytes], HelperAnswer]) -> None:
    """Read requests from standard input until it ends, and write answers to standard output. Reports a `MemoryError`."""
    # The parent decides when this process ends.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(BrokenPipeError):  # nobody is left to read the answer
        # Out of reach of libraries that print: what they write to standard output goes to standard error.
        requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        _send_answer(answers, {"ready": True}, memoryview(b""))
        while len(lengths := requests.read(LENGTHS.size)) == LENGTHS.size:
            header_bytes, content_bytes = LENGTHS.unpack(lengths)
            header, content = requests.read(header_bytes), requests.read(content_bytes)
            if len(content) < content_bytes:
                return
            request = json.loads(header)
            # If the parent is killed meanwhile, nobody else notices that this process hangs.
            signal.setitimer(signal.ITIMER_REAL, request["alarm_s"])
            try:
                result = answer(request, content)
            except MemoryError:
                result = {"memory": True}, b""
            _send_answer(answers, result[0], memoryview(result[1]))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _send_answer(answers: BinaryIO, header: Mapping[str, Any], content: memoryview) -> None:
    text = json.dumps(header).encode()
    answers.write(LENGTHS.pack(len(text), content.nbytes) + text)
    if content.nbytes:
        answers.write(content)
    answers.flush()
