"""One request to an OpenAI-compatible endpoint: retries with growing pauses, and what each kind of failure means."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmblocks._optional import import_optional
from mmblocks.errors import ConfigError, JudgeError
from mmblocks.eval.judge.cache import Completion

if TYPE_CHECKING:
    from openai import APIError, OpenAI

log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "EMPTY"
"""What endpoints that need no key are sent, as vLLM has it."""
LONGEST_WAIT_S = 60.0
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Statuses that pass; others are faults of the request."""
CONNECT_ERRORS = ("ConnectError", "ConnectTimeout")
"""httpx's errors of an endpoint that takes no connection, by name: versions of openai differ in the package."""


class RequestError(Exception):
    """One request got no reply. blames_endpoint: several of these in a row mean that the endpoint does not work."""

    def __init__(self, message: str, *, blames_endpoint: bool = False) -> None:
        super().__init__(message)
        self.blames_endpoint = blames_endpoint


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where a model is and how patiently it is asked. first_wait_s: before the second try, doubled before each further.

    what: what it is called in messages.
    """

    base_url: str = OPENAI_URL
    key_variable: str = "OPENAI_API_KEY"
    retries: int = 5
    first_wait_s: float = 1.0
    timeout_s: float = 120.0
    what: str = "The judge"


@dataclass(slots=True)
class Endpoint:
    """A connection. Several threads may ask; `stopped` ends their pauses."""

    settings: EndpointSettings
    key: str = field(repr=False)
    client: OpenAI = field(repr=False)
    stopped: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def connect(cls, settings: EndpointSettings) -> Endpoint:
        """Nothing is sent yet. Raises `ConfigError` where OpenAI's own endpoint is asked without a key."""
        openai = import_optional("openai", to=settings.what, extra="eval")
        key = os.environ.get(settings.key_variable, "").strip()
        if not key and settings.base_url.rstrip("/") == OPENAI_URL:
            raise ConfigError(
                f"{settings.what} at {OPENAI_URL} needs a key: set the environment variable {settings.key_variable}, or name "
                "the base_url of another endpoint.",
                settings=["key_variable"],
            )
        client = openai.OpenAI(
            api_key=key or NO_KEY, base_url=settings.base_url, timeout=settings.timeout_s, max_retries=0
        )
        return cls(settings, key, client)

    def ask(self, body: Mapping[str, Any]) -> Completion:
        """Raises `RequestError` for a request without a reply, `JudgeError` where further requests are of no use."""
        import openai

        for attempt in range(self.settings.retries + 1):
            try:
                return self._send(body)
            except openai.APIError as cause:
                self._require_of_use(cause)
                if attempt == self.settings.retries or not _is_passing(cause):
                    raise self._make_fault(cause) from None
                wait_s = self._choose_wait(cause, attempt)
                log.info("%s: %s; it is asked again in %.1f s.", self.settings.what, self._describe(cause), wait_s)
            if self.stopped.wait(wait_s):
                break
        raise RequestError("it was not asked again, as the run was stopped")

    def list_models(self) -> list[str]:
        """What it calls the models that it serves. Raises `JudgeError` where it cannot be asked."""
        import openai

        try:
            return [model.id for model in self.client.models.list()]
        except openai.APIError as cause:
            self._require_of_use(cause)
            raise JudgeError(f"{self.settings.what} at {self.settings.base_url}: {self._describe(cause)}") from None

    def close(self) -> None:
        self.client.close()

    def _send(self, body: Mapping[str, Any]) -> Completion:
        rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
        try:
            response = self.client.chat.completions.with_raw_response.create(
                model=body["model"], messages=body["messages"], extra_body=rest
            )
        except UnicodeError as cause:
            raise RequestError(f"its messages are no text that can be sent ({cause})") from cause
        try:
            return read_completion(response.http_response.text)
        except RequestError as cause:
            raise RequestError(self._hide_key(str(cause)), blames_endpoint=cause.blames_endpoint) from None

    def _require_of_use(self, cause: APIError) -> None:
        """Raise `JudgeError` for a failure that every other request would meet too."""
        status, code = getattr(cause, "status_code", None), cause.code
        url, variable = self.settings.base_url, self.settings.key_variable
        go_on = "Replies received so far are stored: start again, and only what is missing is asked."
        if status == 401:
            cure = f"set the right key in {variable}" if self.key else f"{variable} is not set; set it to a key"
            raise JudgeError(f"{url} refuses the key ({self._describe(cause)}); {cure}. {go_on}") from None
        if status == 404:
            raise JudgeError(
                f"{url} does not know what is asked ({self._describe(cause)}); name a model that it serves, and a base_url "
                f"that ends as its manual says, often in /v1. {go_on}"
            ) from None
        if code == "insufficient_quota":
            raise JudgeError(f"{url}: the quota is used up ({self._describe(cause)}); raise it. {go_on}") from None

    def _make_fault(self, cause: APIError) -> Exception:
        if type(cause.__cause__).__name__ in CONNECT_ERRORS:
            return JudgeError(
                f"{self.settings.what} at {self.settings.base_url} cannot be reached ({cause.__cause__}), tried "
                f"{self.settings.retries + 1} times; start it, or correct base_url. Replies received so far are stored: start "
                "again, and only what is missing is asked."
            )
        return RequestError(self._describe(cause), blames_endpoint=_is_passing(cause))

    def _choose_wait(self, cause: APIError, attempt: int) -> float:
        """What the endpoint asks for, else twice as long each time; a minute at most."""
        response = getattr(cause, "response", None)
        try:
            wanted = float(response.headers["retry-after"]) if response is not None else 0.0
        except (KeyError, ValueError):  # a date, rarely
            wanted = 0.0
        return min(LONGEST_WAIT_S, max(wanted, self.settings.first_wait_s * 2**attempt))

    def _describe(self, cause: APIError) -> str:
        """In one line, without the key that some endpoints repeat."""
        what = " ".join(str(cause).split())[:300]
        if type(cause).__name__ == "APIConnectionError":
            what = f"the connection broke ({cause.__cause__})"
        return self._hide_key(what)

    def _hide_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def is_address(url: str) -> bool:
    """Whether a text is an HTTP address with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def read_completion(content: str) -> Completion:
    """The text of the first choice. Raises `RequestError` for what is no chat completion."""
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        text, usage = choice["message"]["content"], reply.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as cause:
        start = " ".join(content[:80].split())
        message = f"the endpoint's reply is no chat completion, it begins {start!r}"
        raise RequestError(message, blames_endpoint=True) from cause
    reason = str(choice.get("finish_reason") or "")
    if not isinstance(text, str):
        raise RequestError(f"the reply has no text (finish_reason {reason!r})")
    return Completion(text, *tokens, model=str(reply.get("model") or ""), finish_reason=reason)


def _is_passing(cause: APIError) -> bool:
    """Whether a later try may get a reply: no connection, a timeout, too many requests, a fault of the server."""
    status = getattr(cause, "status_code", None)
    return status is None or status in RETRIED
