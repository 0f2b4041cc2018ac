"""Errors in the form that clients of OpenAI's API read."""

from __future__ import annotations

from collections.abc import Mapping

RETRY_AFTER_S = 1
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RefusedError(Exception):
    """A request that is not answered: a status of HTTP and what is said about it.

    param: the field at fault, such as `messages[0].content[1]`. code: one word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, object]:
        """The body of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def make_field_error(field: str, message: str) -> RefusedError:
    """An error about a field of a request."""
    return RefusedError(400, message, param=field, code="invalid_value")


def make_busy_error(message: str) -> RefusedError:
    """An error for a client that may ask again soon."""
    return RefusedError(429, message, code="queue_full", headers={"Retry-After": str(RETRY_AFTER_S)})
