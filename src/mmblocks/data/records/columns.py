"""Which key of a record, or column of a table, holds what: the names of the field, and those that a user gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmblocks.data.records.json_records import ObjectWithDuplicates
from mmblocks.errors import DataError
from mmblocks.keys import HARMLESS_KEYS, HISTORY, INPUT, USUAL_KEYS, find_unread_keys, is_empty, refuse_unread_keys
from mmblocks.settings import format_suggestion


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a conversation, None for their usual names. `ask` is the question of rows that have none.

    ignore: keys that are not read, in records, turns and parts. names: the columns that may hold each kind; read: all that
    may be read; unread_defaults: the usual columns of those kinds for which a user named another one.
    """

    conversation: str | None = None
    question: str | None = None
    answer: str | None = None
    image: str | None = None
    video: str | None = None
    system: str | None = None
    ask: str = ""
    ignore: tuple[str, ...] = ()

    names: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    read: tuple[str, ...] = field(init=False, repr=False, compare=False)
    unread_defaults: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        own = self.user_columns
        free = {kind: tuple(name for name in usual if name not in own.values()) for kind, usual in USUAL_KEYS.items()}
        names = {kind: (own[kind],) if kind in own else free[kind] for kind in USUAL_KEYS}
        object.__setattr__(self, "names", names)
        read = (*(name for kind in USUAL_KEYS for name in names[kind]), INPUT, HISTORY)
        object.__setattr__(self, "read", read)
        replaced = frozenset(name for kind in own for name in USUAL_KEYS[kind])
        object.__setattr__(self, "unread_defaults", replaced - frozenset(read))

    @property
    def user_columns(self) -> dict[str, str]:
        """The names that a user gave, by kind."""
        return {kind: name for kind in USUAL_KEYS if (name := getattr(self, kind)) is not None}

    def find_value(self, row: Mapping[str, Any], kind: str, origin: str) -> tuple[str, Any]:
        """(name, value) of a row's column; (the usual name, None) where it holds nothing.

        Raises `DataError` where two columns of a kind hold different values.
        """
        names = self.names[kind]
        filled = [name for name in names if not is_empty(row.get(name))]
        for other in filled[1:]:
            if _normalize_value(row[other]) != _normalize_value(row[filled[0]]):
                raise DataError(
                    f"{origin}: {filled[0]!r} and {other!r} both hold something, and not the same; keep one, or add the "
                    "other to the source's `ignore`."
                )
        present = filled or [name for name in names if row.get(name) is not None]
        return (present[0], row[present[0]]) if present else (names[0], None)

    def remove_ignored(self, value: object) -> Any:
        """A row, or a part of one, without the keys that are ignored."""
        return _remove_keys(value, frozenset(self.ignore)) if self.ignore else value

    def list_unknown(self, columns: Sequence[str]) -> list[str]:
        """Those columns of a table that nothing reads and that are not harmless."""
        known = {*self.read, *self.unread_defaults, *self.ignore, *HARMLESS_KEYS["record"]}
        return [name for name in columns if name not in known]

    def refuse_unread_keys(self, row: Mapping[str, Any], used: Sequence[str], origin: str) -> None:
        """Raise `DataError` for keys that hold something and are not among the `used` ones, nor harmless."""
        refuse_unread_keys(row, self.read, origin)
        if idle := find_unread_keys(row, used):
            beside = next((name for name in used if not is_empty(row.get(name))), used[0])
            raise DataError(
                f"{origin}: {', '.join(map(repr, idle))} beside {beside!r}: only the latter is read; remove one of them, or add "
                "to the source's `ignore` what may be left out."
            )

    def find_fault(self, known: Sequence[str]) -> str | None:
        """What is wrong with these names for a table that has the columns `known`; None if nothing is."""
        for kind, own in self.user_columns.items():
            if own not in known:
                return f"{kind}_column={own!r}: there is no such column.{format_suggestion(own, known)}"
        if not any(name in known for kind in ("conversation", "answer") for name in self.names[kind]):
            return (
                f"no column holds conversations; there are {', '.join(known)}. Name one as conversation_column, "
                "or question_column and answer_column."
            )
        return None


def _normalize_value(value: object) -> object:
    """A value to compare: texts without white space at their ends, a list of one as that one."""
    if isinstance(value, str):
        value = value.strip()
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _remove_keys(value: object, ignored: frozenset[str]) -> object:
    if isinstance(value, ObjectWithDuplicates) and value.duplicate_key not in ignored:
        return value  # it is refused anyway
    if isinstance(value, Mapping):
        return {key: _remove_keys(one, ignored) for key, one in value.items() if key not in ignored}
    return [_remove_keys(one, ignored) for one in value] if isinstance(value, list) else value
