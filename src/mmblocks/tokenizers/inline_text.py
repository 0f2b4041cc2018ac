"""Texts that visual tokenizers write between visual tokens: formats given as settings, and times of frames."""

from collections.abc import Mapping

from mmblocks.errors import ConfigError


def require_format(whose: str, setting: str, text: str, fields: Mapping[str, object], required: str = "") -> None:
    """Refuse a format that names other fields than these, or lacks the `required` one."""
    known = ", ".join(f"{{{name}}}" for name in fields)
    try:
        text.format(**fields)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as cause:
        raise ConfigError(
            f"tokenizer {whose!r}: {setting}={text!r} cannot be filled in ({type(cause).__name__}: {cause}); "
            f"its fields are {known}, with a format as in {{seconds:.2f}}, and braces of its own are doubled.",
            settings=[setting],
        ) from cause
    if required and text.format(**fields) == text.format(**{**fields, required: ""}):
        raise ConfigError(
            f"tokenizer {whose!r}: {setting}={text!r} does not say {{{required}}}; write it where it belongs.",
            settings=[setting],
        )


def make_stamp_fields(number: int, seconds: float) -> dict[str, object]:
    """The fields of a time stamp: the frame's number from 1, its time in seconds, and the same as mm:ss."""
    return {"number": number, "seconds": seconds, "clock": f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"}
