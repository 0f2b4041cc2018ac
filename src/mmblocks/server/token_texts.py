"""Tokens as text and bytes, for answers with log-probabilities."""

from __future__ import annotations

import re
from typing import Any

LOWEST_LOG_PROB = -9999.0
"""Written for tokens of probability 0: JSON knows no infinity."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _make_byte_letters() -> dict[str, int]:
    """The letters that byte-level text tokenizers write bytes as (GPT-2's bytes_to_unicode, turned round)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_LETTERS = _make_byte_letters()
SPACE = "\u2581"
_BROKEN = "\ufffd"


class TokenTexts:
    """Texts and bytes of the tokens of a text tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def write_token(self, token: int, log_prob: float | None) -> dict:
        """A token as `logprobs` have it. Bytes of a token that is a part of a character are those of this part."""
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        if piece.startswith(SPACE) and not text.startswith(" "):  # SentencePiece drops the space at a beginning
            text = f" {text}"
        known = _read_bytes(piece) if _BROKEN in text else text.encode()
        value = LOWEST_LOG_PROB if log_prob is None else max(log_prob, LOWEST_LOG_PROB)
        return {"token": text, "logprob": value, "bytes": list(known)}


def _read_bytes(piece: str) -> bytes:
    if (byte := _BYTE.fullmatch(piece)) is not None:
        return bytes([int(byte[1], 16)])
    if all(letter in BYTE_LETTERS for letter in piece):
        return bytes(BYTE_LETTERS[letter] for letter in piece)
    return piece.encode()
