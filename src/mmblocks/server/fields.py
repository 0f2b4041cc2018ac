"""The fields of a request: what each may hold, and what is said about those that nothing here reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard, TypeVar

from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding
from mmblocks.server.errors import RefusedError, make_field_error
from mmblocks.server.limits import ServerLimits
from mmblocks.settings import format_suggestion, format_value

T = TypeVar("T")
MAX_TOP_LOG_PROBS = 20
MAX_SEED = 2**63

NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "metadata": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "store": (False,),
    "structured_outputs": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of other servers that nothing here reads, with the values that ask for nothing."""

READ_FIELDS = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n",
    "logprobs", "top_logprobs", "stream", "stream_options", "user", "min_tokens", "repetition_penalty",
    "mm_processor_kwargs", "media_io_kwargs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatFields:
    """What a request asks for, beside its messages.

    max_tokens: None where the request does not say. num_frames: how many frames of each video are shown to the model's
    visual tokenizer; None for all.
    """

    decoding: Decoding
    max_tokens: int | None = None
    samples: int = 1
    top_log_probs: int = 0
    is_streamed: bool = False
    has_usage: bool = False
    num_frames: int | None = None

    @classmethod
    def from_body(cls, body: Mapping[str, object], limits: ServerLimits, most_tokens: int | None) -> ChatFields:
        """Raises `RefusedError` that names the field. most_tokens: the most of an answer."""
        body = {name: value for name, value in body.items() if value is not None}
        for name, value in body.items():
            _refuse_unread_field(name, value)
        max_tokens = _read_max_tokens(body, most_tokens)
        wants_log_probs = _read_flag(body, "logprobs")
        top = _read_integer(body, "top_logprobs", 0, MAX_TOP_LOG_PROBS)
        if top and not wants_log_probs:
            raise make_field_error("top_logprobs", "top_logprobs goes with logprobs: true.")
        is_streamed = _read_flag(body, "stream")
        return cls(
            decoding=_read_decoding(body, max_tokens or limits.default_answer_tokens, wants_log_probs),
            max_tokens=max_tokens,
            samples=_read_integer(body, "n", 1, limits.samples) or 1,
            top_log_probs=top or 0,
            is_streamed=is_streamed,
            has_usage=_read_stream_options(body, is_streamed),
            num_frames=_read_num_frames(body, limits),
        )

    def with_answer_tokens(self, count: int) -> ChatFields:
        """The same with answers of so many tokens at most."""
        return replace(self, decoding=replace(self.decoding, max_new_tokens=count))


def _refuse_unread_field(name: str, value: object) -> None:
    if name in READ_FIELDS:
        return
    neutral = NEUTRAL_VALUES.get(name)
    if neutral is None:
        suggestion = format_suggestion(name, (*READ_FIELDS, *NEUTRAL_VALUES))
        raise RefusedError(400, f"no field is called {name!r:.80}.{suggestion}", param=name[:80], code="unknown_field")
    if not any(type(value) is type(one) or (_is_number(value) and _is_number(one)) for one in neutral if value == one):
        accepted = "; leave it out" if not neutral else f"; leave it out, or write {neutral[0]!r}"
        raise RefusedError(
            400,
            f"{name} is not supported, and {format_value(value)} would change the answer{accepted}.",
            param=name,
            code="unsupported_field",
        )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_decoding(body: Mapping[str, object], max_tokens: int, log_probs: bool) -> Decoding:
    penalty = _read_number(body, "repetition_penalty", above=0)
    try:
        return Decoding(
            max_new_tokens=max_tokens,
            temperature=_read_number(body, "temperature") or 0.0,
            top_p=1.0 if (top_p := _read_number(body, "top_p", above=0, most=1)) is None else top_p,
            top_k=max(0, _read_integer(body, "top_k", -1) or 0),  # -1 is all tokens in vLLM
            seed=_read_integer(body, "seed", 0, MAX_SEED),
            stop=_read_stop(body),
            min_new_tokens=_read_integer(body, "min_tokens", 0, max_tokens) or 0,
            repetition_penalty=penalty,
            log_probs=log_probs,
        )
    except ConfigError as fault:
        raise RefusedError(400, str(fault), code="invalid_value") from fault


def _read_max_tokens(body: Mapping[str, object], most: int | None) -> int | None:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in body]
    values = {_read_integer(body, name, 1, most) for name in names}
    if len(values) > 1:
        raise make_field_error("max_tokens", "max_tokens and max_completion_tokens differ; keep one.")
    return next(iter(values), None)


def _read_integer(body: Mapping[str, object], name: str, least: int, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise make_field_error(name, f"{name} is {format_value(value)}; write a whole number, {limits}.")
    return value


def _read_number(
    body: Mapping[str, object], name: str, *, above: float | None = None, most: float = 1000
) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if not _is_number(value) or not (0 if above is None else above) <= value <= most or value == above:
        least = "from 0" if above is None else f"above {above:g}"
        raise make_field_error(name, f"{name} is {format_value(value)}; write a number {least} and up to {most:g}.")
    return float(value)


def _read_flag(body: Mapping[str, object], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise make_field_error(name, f"{name} is {format_value(value)}; write true or false.")
    return value


def _read_stop(body: Mapping[str, object]) -> tuple[str, ...]:
    value = body.get("stop", [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts) or len(texts) > 16:
        raise make_field_error("stop", f"stop is {format_value(value)}; write a text, or a list of up to 16 texts.")
    return tuple(texts)


def _read_mapping(body: Mapping[str, object], name: str, keys: Mapping[str, Callable[[object], T]]) -> dict[str, T]:
    """A field that is a mapping, each of its keys read by its function."""
    value = body.get(name.split(".")[-1], {})
    if not isinstance(value, dict):
        raise make_field_error(name, f"{name} is {format_value(value)}; write an object with {', '.join(keys)}.")
    for key in value:
        if key not in keys:
            raise RefusedError(
                400,
                f"{name} has no {key!r:.80}; it may hold {', '.join(keys)}.",
                param=f"{name}.{key[:80]}",
                code="unknown_field",
            )
    return {key: keys[key](one) for key, one in value.items() if one is not None}


def _read_stream_options(body: Mapping[str, object], is_streamed: bool) -> bool:
    if "stream_options" in body and not is_streamed:
        raise make_field_error("stream_options", "stream_options goes with stream: true.")
    read = {
        "include_usage": lambda value: _read_flag(
            {"stream_options.include_usage": value}, "stream_options.include_usage"
        )
    }
    return _read_mapping(body, "stream_options", read).get("include_usage", False)


def _read_num_frames(body: Mapping[str, object], limits: ServerLimits) -> int | None:
    """`mm_processor_kwargs.num_frames` or `media_io_kwargs.video.num_frames`."""

    def read_count(name: str) -> Callable[[object], int | None]:
        return lambda value: _read_integer({name: value}, name, 1, limits.frames)

    def read_video(value: object) -> int | None:
        name = "media_io_kwargs.video"
        return _read_mapping({"video": value}, name, {"num_frames": read_count(f"{name}.num_frames")}).get("num_frames")

    given = _read_mapping(body, "mm_processor_kwargs", {"num_frames": read_count("mm_processor_kwargs.num_frames")})
    video = _read_mapping(body, "media_io_kwargs", {"video": read_video})
    counts = {count for count in (given.get("num_frames"), video.get("video")) if count is not None}
    if len(counts) > 1:
        raise make_field_error("media_io_kwargs.video.num_frames", "two numbers of frames differ; keep one.")
    return next(iter(counts), None)
