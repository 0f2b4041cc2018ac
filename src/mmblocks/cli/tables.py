"""Tables of text."""

from collections.abc import Iterator, Sequence


def align_columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines; the first column is aligned left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        cells = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([f"{first:{widths[0]}}", *cells]).rstrip()
