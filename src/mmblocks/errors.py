"""Every error a user can cause, under one root. A message says what happened, with the value, and the cure."""

from collections.abc import Iterable, Sequence
from typing import Self

from mmblocks.faults import Fault, format_faults


class MMBlocksError(Exception):
    """Root of all errors that mmblocks raises on purpose."""


class ConfigError(MMBlocksError, ValueError):
    """A setting or a composition cannot work.

    settings: names of the component's settings that are at fault. faults: what is wrong, where it is several things.
    """

    def __init__(self, message: str = "", *, settings: Iterable[str] = (), faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.settings = tuple(settings)
        self.faults = tuple(faults)

    @classmethod
    def from_faults(cls, faults: Sequence[Fault], title: str = "") -> Self:
        """All faults in one error, below a title."""
        return cls(
            format_faults(faults, title),
            settings=dict.fromkeys(fault.key.partition(".")[0] for fault in faults),
            faults=faults,
        )


class UnknownComponentError(ConfigError, KeyError):
    """A registry has no component of that name."""

    __str__ = Exception.__str__  # KeyError's would print the message as a quoted repr


class DataError(MMBlocksError, ValueError):
    """A record, image or video cannot be used; the message names the file."""


class MachineError(MMBlocksError, RuntimeError):
    """This machine lacks what reading takes (open files, memory, a process of its own); no record is to blame."""


class CheckpointError(MMBlocksError, RuntimeError):
    """A checkpoint folder is missing, cut, or disagrees with the model."""


class TrainingError(MMBlocksError, RuntimeError):
    """A run cannot go on from where it is."""


class StorageError(MMBlocksError, OSError):
    """A file or folder cannot be written; the message names it and says how much room there is."""


class BusyError(MMBlocksError):
    """Another process is at work in a folder; the message names its host and process id."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says where it stopped and how to resume."""

    exit_code = 130


class TrainingPreempted(TrainingInterrupted):
    """SIGTERM, SIGUSR1 or SIGHUP during a run: its state is saved, and the message says so and how to resume."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: start it again


class JudgeError(MMBlocksError, RuntimeError):
    """A judge cannot be asked any more; what it has replied is kept, and the message says how to go on."""


class MissingDependencyError(MMBlocksError, ImportError):
    """An optional package is needed for this."""
