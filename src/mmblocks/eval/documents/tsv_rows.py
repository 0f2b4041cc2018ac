"""Tables as text: VLMEvalKit's TSV with base64 images, and CSV. Texts are kept in memory, images are read on access.

An image cell holds base64, a list of base64 texts, a path, or the index of the row that holds the image
(VLMEvalKit, vlmeval/dataset/image_base.py: cells of up to 64 characters).
"""

from __future__ import annotations

import ast
import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from mmblocks.data.media.files import decode_base64_image, is_image_name
from mmblocks.errors import DataError
from mmblocks.eval.documents.layout import is_absent
from mmblocks.eval.documents.rows import Key, collect_values

DELIMITERS = {".tsv": "\t", ".csv": ","}
LONGEST_REFERENCE = 64
INDEX, IMAGE = "index", "image"


class TsvRows:
    """Rows of a .tsv or .csv file whose first line names the columns; every value is text. Images stay in the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self._delimiter = DELIMITERS[path.suffix.lower()]
        self._begins, self._lines = array("q"), array("q")
        self._cells: list[list[str]] = []
        self._rows_with_image: dict[str, int] = {}
        csv.field_size_limit(2**31 - 1)  # an image is one field
        with path.open("rb") as file:
            lines = _CountedLines(file, str(path))
            records = csv.reader(lines, delimiter=self._delimiter)
            self.columns: Sequence[str] = _take_record(records, path, 1) or []
            if not self.columns:
                raise DataError(f"{path}: it is empty; its first line names the columns.")
            self._image = self.columns.index(IMAGE) if IMAGE in self.columns else len(self.columns)
            while True:
                begin, line = lines.position, records.line_num + 1
                cells = _take_record(records, path, line)
                if cells is None:
                    break
                if cells:
                    self._keep_row(cells, begin, line)

    def _keep_row(self, cells: list[str], begin: int, line: int) -> None:
        """Keep the texts of a row, and where its image can be read again."""
        for image in cells[self._image : self._image + 1]:
            if len(image) > LONGEST_REFERENCE:
                index = dict(zip(self.columns, cells, strict=False)).get(INDEX, "")
                self._rows_with_image[_normalize_index(index)] = len(self._cells)
                cells[self._image] = image[: LONGEST_REFERENCE + 1]
        self._cells.append(cells)
        self._begins.append(begin)
        self._lines.append(line)

    def __len__(self) -> int:
        return len(self._cells)

    def read_row(self, number: int) -> Mapping[str, object]:
        row: dict[str, object] = {**self._name_cells(number)}
        if not is_absent(row.get(IMAGE)):
            row[IMAGE] = self._resolve_image(str(row[IMAGE]), number, self.describe_origin(number))
        return row

    def read_values(self, names: Sequence[str]) -> list[Key | None]:
        return collect_values(self._name_cells, len(self), names)

    def describe_origin(self, number: int) -> str:
        return f"{self.path}:line {self._lines[number]}"

    def _name_cells(self, number: int) -> Mapping[str, str]:
        cells = self._cells[number]
        if len(cells) != len(self.columns):
            raise DataError(
                f"{self.describe_origin(number)}: {len(cells)} cells, but the first line names {len(self.columns)} columns: "
                f"{self._delimiter.join(cells):.80}"
            )
        return dict(zip(self.columns, cells, strict=True))

    def _resolve_image(self, cell: str, number: int, where: str) -> object:
        """The bytes of the image of row `number`, a list of them, or a path. cell: what is kept of it."""
        if len(cell) <= LONGEST_REFERENCE:
            referred = self._rows_with_image.get(_normalize_index(cell))
            if referred is None and _normalize_index(cell).isdecimal():
                raise DataError(
                    f"{where}: its image is that of the row with the index {cell}, but no such row holds one; add it."
                )
            if referred is None:
                return cell
            number = referred
        with self.path.open("rb") as file:
            file.seek(self._begins[number])
            records = csv.reader(_CountedLines(file, where), delimiter=self._delimiter)
            image = (_take_record(records, self.path, self._lines[number]) or [])[self._image]
        if image.startswith("["):
            with suppress(ValueError, SyntaxError):
                return [_decode_cell(str(one), where) for one in ast.literal_eval(image)]
        return image if is_image_name(image) else _decode_cell(image, where)


class _CountedLines:
    """Lines of a file as text, and the position of the next one: a record may take several lines."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file, self._where = file, where
        self.position = file.tell()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        is_first, self.position = self.position == 0, self.position + len(line)
        try:
            return line.decode("utf-8-sig" if is_first else "utf-8")
        except UnicodeDecodeError as cause:
            raise DataError(f"{self._where}: not UTF-8 ({cause}): {line[:80]!r}; save it as UTF-8.") from cause


def _take_record(records: Iterator[list[str]], path: Path, line: int) -> list[str] | None:
    """The next record, [] for an empty line, None at the end."""
    try:
        return next(records, None)
    except csv.Error as cause:
        raise DataError(f"{path}:line {line}: cannot be read as a table ({cause}); check its quotes.") from cause


def _decode_cell(cell: str, where: str) -> bytes:
    content = decode_base64_image(cell)
    if content is None:
        raise DataError(
            f"{where}: the image cell holds {len(cell)} characters that are no base64 of an image "
            f"({cell[:40]!r}...); encode the file again."
        )
    return content


def _normalize_index(index: str) -> str:
    """An index as pandas writes it: whole numbers may have become 3.0."""
    return index.strip().removesuffix(".0")
