"""Messages of a request as a conversation: texts, and images and videos that came with it or are fetched for it.

Nothing that a client sends is taken as a path of this machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from mmblocks.conversation import Conversation, Message, Part, Role, Text, Visual
from mmblocks.data.media.files import resolve_source
from mmblocks.data.media.urls import UrlLimits, fetch_url, is_web_url
from mmblocks.errors import DataError
from mmblocks.server.errors import RefusedError
from mmblocks.server.limits import ServerLimits
from mmblocks.settings import format_value
from mmblocks.shapes import VisualKind

ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXT_TYPES = ("text", "input_text", "output_text")
VISUAL_TYPES: Mapping[str, tuple[VisualKind, str]] = {
    "image_url": ("image", "image_url"),
    "input_image": ("image", "image_url"),
    "image": ("image", "image"),
    "video_url": ("video", "video_url"),
    "input_video": ("video", "video_url"),
    "video": ("video", "video"),
}
"""By the type of a part, what it shows and which of its keys holds it."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameFiles:
    """A video given as images, not yet decoded: the content of the file of each."""

    files: tuple[bytes, ...]


def make_media_error(where: str, message: str) -> RefusedError:
    """An error about a part of a message."""
    return RefusedError(400, f"{where}: {message}", param=where, code="invalid_media")


@dataclass(frozen=True, slots=True)
class MessageReader:
    """Reads messages. url_hosts: None where no URL is fetched, else hosts that may have private addresses."""

    limits: ServerLimits
    url_hosts: Collection[str] | None = None

    def read_messages(self, raw: object) -> tuple[Conversation, tuple[str, ...]]:
        """A conversation that ends with a message of the user, and for each of its visuals which part of which message it is.

        URLs are fetched here. Raises `RefusedError`.
        """
        if not isinstance(raw, list) or not raw:
            message = f"messages is {format_value(raw)}; write a list of at least one message."
            raise RefusedError(400, message, param="messages", code="invalid_value")
        messages, places = [], []
        for i, one in enumerate(raw):
            messages.append(self._read_message(one, f"messages[{i}]", places))
        if messages[-1].role == "assistant":
            message = "there is nothing to answer; the last message is to be the user's."
            raise RefusedError(400, message, param=f"messages[{len(raw) - 1}].role", code="invalid_value")
        return Conversation(tuple(messages), "messages"), tuple(places)

    def _read_message(self, raw: object, where: str, places: list[str]) -> Message:
        if not isinstance(raw, dict):
            message = f"{where} is {format_value(raw)}; a message is an object with role and content."
            raise RefusedError(400, message, param=where, code="invalid_value")
        role = raw.get("role")
        if not isinstance(role, str) or role not in ROLES:
            message = f"{where}.role is {format_value(role)}; write one of {', '.join(ROLES)}."
            raise RefusedError(400, message, param=f"{where}.role", code="invalid_value")
        for key, value in raw.items():
            if key not in ("role", "content") and value not in (None, []):
                message = f"{where}: {key!r:.80} is not supported; a message has role and content."
                raise RefusedError(400, message, param=f"{where}.{key[:80]}", code="unsupported_field")
        content = raw.get("content")
        if isinstance(content, str):
            return Message(ROLES[role], (Text(content),))
        if not isinstance(content, list):
            message = f"{where}.content is {format_value(content)}; write a text or a list of parts."
            raise RefusedError(400, message, param=f"{where}.content", code="invalid_value")
        return Message(ROLES[role], tuple(self._read_parts(content, f"{where}.content", places)))

    def _read_parts(self, content: list[object], where: str, places: list[str]) -> Iterator[Part]:
        """The parts of a message. Visuals and what follows them stand on lines of their own, as in `mmblocks.Chat`."""
        parts = []
        for i, raw in enumerate(content):
            part = self._read_part(raw, f"{where}[{i}]")
            if isinstance(part, Visual):
                places.append(f"{where}[{i}]")
                if len(places) > self.limits.visuals:
                    message = f"more than {self.limits.visuals} images and videos; show fewer."
                    raise make_media_error(f"{where}[{i}]", message)
            parts.append(part)
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            yield part
            has_line = isinstance(following, Text) and following.text.startswith("\n")
            if isinstance(part, Visual) and following is not None and not has_line:
                yield Text("\n")

    def _read_part(self, raw: object, where: str) -> Part:
        kind = raw.get("type") if isinstance(raw, dict) else None
        if isinstance(raw, dict) and isinstance(kind, str) and kind in TEXT_TYPES:
            text = _read_only_key(raw, "text", where)
            if not isinstance(text, str):
                message = f"{where}.text is {format_value(text)}; write a text."
                raise RefusedError(400, message, param=f"{where}.text", code="invalid_value")
            return Text(text)
        if not isinstance(raw, dict) or not isinstance(kind, str) or kind not in VISUAL_TYPES:
            known = ", ".join(("text", *VISUAL_TYPES))
            message = f"{where}: parts of the type {format_value(kind)} are not supported; it may be {known}."
            raise RefusedError(400, message, param=f"{where}.type", code="unsupported_part")
        shown, key = VISUAL_TYPES[kind]
        return self._read_visual(shown, _read_only_key(raw, key, where, ("detail",)), f"{where}.{key}", where)

    def _read_visual(self, kind: VisualKind, content: object, key: str, where: str) -> Visual:
        """content: a URI, {"url": URI}, and of a video also a list of the URIs of its frames."""
        if isinstance(content, dict):
            content = _read_only_key(content, "url", key, ("detail",))
        if kind == "video" and isinstance(content, list):
            if not 0 < len(content) <= self.limits.frames:
                raise make_media_error(where, f"a video of {len(content)} images; write 1 to {self.limits.frames}.")
            frames = [self._read_file(one, "image", f"{where}: frame {i}") for i, one in enumerate(content)]
            return Visual("video", FrameFiles(tuple(frames)))
        return Visual(kind, self._read_file(content, kind, where))

    def _read_file(self, source: object, kind: VisualKind, where: str) -> bytes:
        place = where.partition(":")[0]
        if not isinstance(source, str):
            raise RefusedError(
                400, f"{where}: the {kind} is {format_value(source)}; write a URI.", param=place, code="invalid_media"
            )
        try:
            if source[:5].lower() == "data:":
                return bytes(resolve_source(f"data:{source[5:]}", kind))  # of a data: URI always the content
            if is_web_url(source) and self.url_hosts is not None:
                return fetch_url(source, self.url_hosts, UrlLimits(self.limits.stall_s, self.limits.body_bytes))
        except DataError as fault:
            raise RefusedError(400, f"{where}: {fault}", param=place, code="invalid_media") from fault
        refusal = "this server fetches no URLs (its owner may start it with --allow-urls)" if is_web_url(source) else ""
        refusal = refusal or f"{source[:40]!r} is no data: URI"
        message = f"{where}: {refusal}; send the {kind} itself, as data:{kind}/...;base64,..."
        raise RefusedError(400, message, param=place, code="invalid_media")


def _read_only_key(raw: Mapping[str, object], key: str, where: str, ignored: tuple[str, ...] = ()) -> object:
    """The value of a key; others but the type and what is `ignored` (as the "detail" of an image) are refused."""
    for name, value in raw.items():
        if name not in ("type", key, *ignored) and value is not None:
            message = f"{where}: {name!r:.80} is not supported; write {key!r} alone."
            raise RefusedError(400, message, param=f"{where}.{name[:80]}", code="unsupported_field")
    if raw.get("detail") not in (None, "auto"):
        message = (
            f"{where}.detail is {format_value(raw['detail'])}; the model decides how an image is cut: write 'auto'."
        )
        raise RefusedError(400, message, param=f"{where}.detail", code="unsupported_field")
    return raw.get(key)
