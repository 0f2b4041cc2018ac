"""Distances between two sequences of characters or words, by bit-parallel dynamic programming on whole rows."""

from collections.abc import Hashable, Sequence


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance (Myers 1999, in the form of Hyyrö 2003)."""
    short, long = sorted((first, second), key=len)
    if not short:
        return len(long)
    masks = _find_positions(short)
    full = (1 << len(short)) - 1
    last = 1 << (len(short) - 1)
    rises, falls, distance = full, 0, len(short)  # down one column of the table: +1 and -1 steps
    for item in long:
        equal = masks.get(item, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        right_rises = falls | (full & ~(diagonal | rises))
        right_falls = diagonal & rises
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = (right_rises << 1 | 1) & full
        rises = (right_falls << 1 & full) | (full & ~(diagonal | right_rises))
        falls = diagonal & right_rises
    return distance


def common_subsequence_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence (Hyyrö 2004)."""
    short, long = sorted((first, second), key=len)
    masks = _find_positions(short)
    full = (1 << len(short)) - 1
    row = full
    for item in long:
        matches = row & masks.get(item, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(short) - row.bit_count()


def _find_positions(items: Sequence[Hashable]) -> dict[Hashable, int]:
    """Where each item stands, as a bit set."""
    masks: dict[Hashable, int] = {}
    for position, item in enumerate(items):
        masks[item] = masks.get(item, 0) | 1 << position
    return masks
