"""Whether the images of a GIF are whole. FFmpeg shows half of one that was cut and takes any damage for pixels.

Every image says how many pixels it has, and its LZW codes say how many they stand for
(https://www.w3.org/Graphics/GIF/spec-gif89a.txt, sections 20, 22 and appendix F).
"""

from functools import cache

import numpy as np

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_MOST_CODES = 4096


def find_gif_fault(packet: bytes) -> str | None:
    """What is wrong with a packet of FFmpeg's GIF demuxer: blocks up to and with one image. None for a whole one."""
    try:
        at = 13 + _count_colour_bytes(packet[10]) if packet[:3] == b"GIF" else 0
        while at < len(packet) and packet[at] != _TRAILER:
            if packet[at] == _EXTENSION:
                at = _read_sub_blocks(packet, at + 2)[1]
            elif packet[at] == _IMAGE:
                width, height = (int.from_bytes(packet[at + i : at + i + 2], "little") for i in (5, 7))
                at += 10 + _count_colour_bytes(packet[at + 9])
                codes, end = _read_sub_blocks(packet, at + 1)
                if not _has_pixel_count(codes, packet[at], width * height):
                    return f"its image does not come to {width * height} pixels"
                at = end
            else:
                return f"block {packet[at]:#x} is none that GIF knows"
    except IndexError:
        return "its image is cut off"
    return None


def _count_colour_bytes(flags: int) -> int:
    """Bytes of the table of colours that these flags describe."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _read_sub_blocks(data: bytes, at: int) -> tuple[bytes, int]:
    """Their content joined, and where the next block begins. Raises `IndexError` where they are cut off."""
    parts = []
    while length := data[at]:
        parts.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    return b"".join(parts), at + 1


def _has_pixel_count(data: bytes, bits: int, wanted: int) -> bool:
    """Whether the codes stand for so many pixels. Without an end code, bits that fill the last byte may look like more."""
    if not 1 <= bits <= 8:
        return False
    clear, begin, pixels, is_last, has_end = 1 << bits, 0, 0, False, False
    padded = np.frombuffer(data + bytes(4), np.uint8).astype(np.uint32)
    while not is_last:
        codes, begin, is_last, has_end = _read_codes(padded, 8 * len(data), begin, bits)
        # Pixels of a code: one, or one more than the code that its entry was made behind.
        is_entry, number = codes > clear, np.arange(len(codes))
        behind = np.where(is_entry, codes.astype(np.int64) - clear - 2, number)
        if np.any(is_entry & (behind >= number)):
            return False
        more = is_entry.astype(np.int64)
        while np.any(more[behind] > 0):
            more, behind = more + more[behind], behind[behind]
        pixels += int((more + 1).sum())
    return pixels == wanted if has_end else pixels >= wanted


def _read_codes(data: np.ndarray, num_bits: int, begin: int, bits: int) -> tuple[np.ndarray, int, bool, bool]:
    """Codes from the bit `begin` on up to a clear code, the bit behind that, whether these are the last, and whether an
    end code says so.
    """
    clear, parts, known = 1 << bits, [], 0
    while True:
        width = _compute_widths(clear, known)
        at = begin + np.concatenate([[0], np.cumsum(width)])
        whole = int(np.searchsorted(at[1:], num_bits, side="right"))
        at, byte = at[:whole], at[:whole] >> 3
        window = data[byte] | data[byte + 1] << 8 | data[byte + 2] << 16
        codes = window >> (at & 7) & (1 << width[:whole]) - 1
        stops = np.flatnonzero((codes == clear) | (codes == clear + 1))
        if len(stops) or whole < _MOST_CODES:
            stop = int(stops[0]) if len(stops) else whole
            parts.append(codes[:stop])
            has_end = len(stops) > 0 and bool(codes[stop] == clear + 1)
            is_last = has_end or not len(stops)
            return np.concatenate(parts), 0 if is_last else int(at[stop] + width[stop]), is_last, has_end
        parts.append(codes)
        known, begin = _MOST_CODES, int(at[-1] + width[whole - 1])


@cache
def _compute_widths(clear: int, known: int) -> np.ndarray:
    """Bits of the codes behind `known` ones: as the number of the entry that the table gets next has, 12 at most."""
    entry = clear + 2 + np.maximum(known + np.arange(_MOST_CODES) - 1, 0)
    return np.floor(np.log2(np.minimum(entry, _MOST_CODES - 1))).astype(np.int64) + 1
