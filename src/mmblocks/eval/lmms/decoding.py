"""The `generation_kwargs` of lmms-eval's tasks as decoding settings."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from mmblocks.errors import ConfigError
from mmblocks.model.generation.decoding import Decoding

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
"""What lmms-eval's own classes write where a task does not say."""
NUMBERS = {"max_new_tokens": int, "min_new_tokens": int, "repetition_penalty": float}
SAMPLING_NUMBERS = {"temperature": float, "top_p": float, "top_k": int}
"""Read with `do_sample: true` only, as lmms-eval's classes for LLaVA do: tasks write `top_p: 0` beside `do_sample: false`."""
READ = (*NUMBERS, *SAMPLING_NUMBERS, "do_sample", "until")


def read_decoding(given: Mapping[str, Any]) -> Decoding:
    """Decoding settings of a request. What nothing reads is logged, once for each name.

    Raises `ConfigError` for values that are no settings of generation.
    """
    for name, value in given.items():
        if name not in READ and value is not None and (name, value) != ("num_beams", 1):
            _warn_of_unread_setting(name)
    is_sampled = bool(given.get("do_sample"))
    readers = {**NUMBERS, **SAMPLING_NUMBERS} if is_sampled else NUMBERS
    settings = {
        name: _read_number(name, given[name], to) for name, to in readers.items() if given.get(name) is not None
    }
    defaults = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 1.0 if is_sampled else 0.0}
    return Decoding(**{**defaults, **settings}, stop=_read_stop_texts(given.get("until")))


def _read_number(name: str, value: Any, to: type) -> Any:
    try:
        return to(value)
    except (TypeError, ValueError) as cause:
        raise ConfigError(f"generation_kwargs: {name}={value!r:.80} is no number; write one in the task.") from cause


def _read_stop_texts(until: object) -> tuple[str, ...]:
    texts = [until] if isinstance(until, str) else until or []
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"generation_kwargs: until={until!r:.80} is no list of texts; write one in the task.")
    return tuple(text for text in texts if text)


@cache
def _warn_of_unread_setting(name: str) -> None:
    log.warning("lmms-eval: nothing reads %r of generation_kwargs; read are %s", name, ", ".join(READ))
