"""Texts that visual tokenizers tell between their rows: formats given as settings, and when a frame is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmblocks.errors import ConfigError


def require_format(whose: str, setting: str, text: str, fields: Mapping[str, Any], must: str = "") -> None:
    """Refuse a format that names other fields than these, or lacks the one it must have."""
    known = ", ".join(f"{{{name}}}" for name in fields)
    try:
        text.format(**fields)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as cause:
        raise ConfigError(
            f"tokenizer {whose!r}: {setting}={text!r} cannot be filled in ({type(cause).__name__}: {cause}); "
            f"its fields are {known}, with a format as in {{seconds:.2f}}, and braces of its own are doubled.",
            settings=[setting],
        ) from cause
    if must and text.format(**fields) == text.format(**{**fields, must: ""}):
        raise ConfigError(
            f"tokenizer {whose!r}: {setting}={text!r} does not say {{{must}}}; write it where it belongs.",
            settings=[setting],
        )


def make_stamp_fields(number: int, seconds: float) -> dict[str, Any]:
    """What a time stamp can say: the frame's number from 1, its time in seconds, and the same as mm:ss."""
    return {"number": number, "seconds": seconds, "clock": f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"}
