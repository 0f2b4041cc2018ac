"""Which fields of published records hold what a task reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmblocks.data.media.files import make_natural_key
from mmblocks.errors import DataError
from mmblocks.keys import is_empty

NUMBERED = "*"
"""A name such as "image_*" stands for all fields image_0, image_1, ... that hold something, in the order of their numbers."""
VLMEVALKIT_ABSENT = "nan"
"""What a table of pandas that was read as text has in an empty cell."""


@dataclass(frozen=True, slots=True)
class DocumentLayout:
    """The fields that a task reads, by the name under which it asks for them.

    required, optional: a field with the other names under which it is published. key: fields that together name a
    document, the first tuple of which all are there; without one it is named by its number. images, videos: names of which
    the first that holds something is read, also a list. cluster: fields of which the first names the image or video that
    documents share. needs_visual: whether a document without an image or video is a fault.
    """

    required: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    key: tuple[tuple[str, ...], ...] = (("question_id",), ("id",), ("index",))
    images: tuple[str, ...] = ("image", "images", "image_path")
    videos: tuple[str, ...] = ()
    cluster: tuple[str, ...] = ("image_id",)
    needs_visual: bool = True

    def find_key(self, columns: Collection[str]) -> tuple[str, ...]:
        """The fields that name a document of a file with these columns; none where it is named by its number."""
        return next((names for names in self.key if all(name in columns for name in names)), ())

    def list_missing(self, columns: Collection[str]) -> list[str]:
        """The required fields that a file with these columns does not have under any name."""
        return [name for name, others in self.required.items() if not any(one in columns for one in (name, *others))]

    def read_fields(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A row without its media; its fields stand under their first names too. Raises `DataError` for one that is missing."""
        media = (*self.images, *self.videos)
        fields = {name: value for name, value in row.items() if not any(_is_called(name, one) for one in media)}
        for name, others in {**self.optional, **self.required}.items():
            present = [one for one in (name, *others) if row.get(one) is not None]
            if present:
                fields[name] = row[present[0]]
            elif name in self.required:
                raise DataError(f"{where}: the field {name!r} holds nothing; write it, or remove the record.")
        return fields

    def find_cluster(self, row: Mapping[str, Any]) -> str:
        """What a row names as the image or video that it shares."""
        return next((str(row[name]) for name in self.cluster if not is_empty(row.get(name))), "")


def list_media(row: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(field, value) of the first of the names that holds something: one, or several for a numbered name."""
    for name in names:
        called = sorted((one for one in row if _is_called(one, name)), key=make_natural_key)
        if found := [(one, row[one]) for one in called if not is_absent(row[one])]:
            yield from found
            return


def _is_called(name: str, pattern: str) -> bool:
    """Whether a field has a name, or is one of the numbered ones that it stands for."""
    prefix = pattern.removesuffix(NUMBERED)
    return name == pattern or (
        pattern.endswith(NUMBERED) and re.fullmatch(re.escape(prefix) + r"\d+", name) is not None
    )


def is_absent(value: object) -> bool:
    """Whether a field holds nothing, as JSON, parquet and TSV say it."""
    return is_empty(value) or value == VLMEVALKIT_ABSENT
