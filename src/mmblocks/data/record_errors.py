"""Whatever goes wrong with a record is a `DataError` that names it: the one place where errors of others become ours."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from unicodedata import category

from mmblocks.errors import DataError, MachineError, MMBlocksError

LONGEST = 4000
"""Characters of a message; a record may hold names and texts of any length."""
_AFTER_ORIGIN = re.compile(r"( \(id .{0,400}?\))?: ")
PANIC = "PanicException"
"""What tokenizers and other libraries in Rust raise for mistakes of theirs; it derives from BaseException."""
MACHINE_ERRORS = {
    errno.EMFILE: "too many files are open in this process; raise the limit (ulimit -n), or use fewer workers",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "the machine has no memory left; use fewer workers",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk's quota is used up",
}
"""Errors that say nothing of the record in whose turn they come."""
_SHOWS_NOTHING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, marks without an image, half characters, and ends of lines."""


@contextmanager
def name_errors(origin: str) -> Iterator[None]:
    """Raise any error of reading, encoding or opening a record as a `DataError` that begins with `origin`.

    A `DataError` keeps its class and is named where it is not yet. Not touched: what ends a program, our errors of other
    kinds and missing packages. Raises `MachineError` where the machine is at its end, whatever the record.
    """
    try:
        yield
    except DataError as fault:
        _check_machine_error(fault, origin)
        message = str(fault)
        text = to_printable(message if message.startswith((origin, to_printable(origin))) else f"{origin}: {message}")
        if text == message:
            raise
        raise type(fault)(text) from fault
    except (MMBlocksError, ImportError):
        raise
    except BaseException as cause:
        if not isinstance(cause, Exception) and type(cause).__name__ != PANIC:
            raise
        _check_machine_error(cause, origin)
        raise DataError(to_printable(f"{origin}: {_format_reason(cause)}")) from cause


def split_reason(fault: DataError, origin: str) -> tuple[str, str]:
    """The two halves of an error: where the record stands, with its id where it has one, and what is wrong with it."""
    message = str(fault)
    rest = message.removeprefix(to_printable(origin))
    found = _AFTER_ORIGIN.match(rest)
    if rest == message or found is None:
        return to_printable(origin), message
    return to_printable(origin) + (found[1] or ""), rest[found.end() :]


def to_printable(text: str) -> str:
    """A message on which control characters, half characters and turns of the writing direction do nothing."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 3]}..."
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if category(c) in _SHOWS_NOTHING and c not in "\n\t" else c for c in text)


def _format_reason(cause: BaseException) -> str:
    """What happened, by the error's own name, where, and what to do."""
    name, message = type(cause).__name__, str(cause).strip()
    if isinstance(cause, MemoryError):
        message = f"{message} it takes more memory than there is".strip()
    if isinstance(cause, RecursionError):
        message = "it is nested too deeply"
    what = f"{name}: {message.rstrip('.')}" if message else name
    package = Path(__file__).parents[1]
    files = [(Path(frame.f_code.co_filename), line) for frame, line in walk_tb(cause.__traceback__)]
    ours = [(file, line) for file, line in files if file.is_relative_to(package) and str(file) != __file__]
    where = f" ({ours[-1][0].relative_to(package)}:{ours[-1][1]})" if ours else ""
    return (
        f"{what}{where}. Mend the record or drop it; if nothing is wrong with "
        "it, please report this as a mistake of mmblocks."
    )


def _check_machine_error(cause: BaseException, origin: str) -> None:
    """Raise `MachineError` where the first cause is the machine's: leaving out the record would only lose it."""
    first: BaseException | None = cause
    while first is not None:
        if isinstance(first, OSError) and first.errno in MACHINE_ERRORS:
            raise MachineError(f"{to_printable(origin)}: {MACHINE_ERRORS[first.errno]} ({first}).") from cause
        first = first.__cause__
