"""Contents of messages as a Jinja takes them: a text, or a list of parts, in which a visual stands where the Jinja puts it.

While it is rendered, a mark stands for a part of a message: private characters that no text has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmblocks.conversation import Message, Part, Role, Text, Visual
from mmblocks.errors import DataError

PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")
Render = Callable[[list[dict[str, Any]], bool], str]
"""(messages, whether an answer is opened) to text. Raises `Refused` where the Jinja raises."""


class RefusedByTemplate(DataError):
    """A Jinja does not take a conversation."""


def make_placeholder(number: int) -> str:
    """What stands for a part while a template is rendered."""
    return f"\ue000{number}\ue001"


@dataclass(frozen=True, slots=True)
class ContentFormat:
    """How one Jinja takes contents.

    listed: roles whose contents are lists of parts; the others' are texts, with a mark in place of a visual.
    tokens: what the Jinja writes for a visual of a list, by its kind.
    """

    roles_with_lists: frozenset[Role]
    tokens: Mapping[str, str]

    @classmethod
    def from_template(cls, render: Render, text_tokenizer: Any) -> ContentFormat:
        """Found by trying: lists are taken if an image's token and the words beside it come out, as processors need it.

        The token is the text tokenizer's `image_token` or <image>, of videos `video_token` or <video>.
        """
        tokens = {kind: getattr(text_tokenizer, f"{kind}_token", None) or f"<{kind}>" for kind in ("image", "video")}
        return cls(frozenset(_find_roles_with_lists(render, tokens["image"])), tokens)

    def to_messages(self, said: Sequence[Message], *, texts: bool = False) -> list[dict[str, Any]]:
        """Messages with a mark for every part, or with `texts` for visuals only."""
        numbers = iter(range(sum(len(m.parts) for m in said)))
        found: list[dict[str, Any]] = []
        for message in said:
            shown = [
                part.text if texts and isinstance(part, Text) else make_placeholder(number)
                for number, part in zip((next(numbers) for _ in message.parts), message.parts, strict=True)
            ]
            content: Any = "".join(shown)
            if message.role in self.roles_with_lists:
                pairs = zip(message.parts, shown, strict=True)
                content = [
                    _make_visual_part(part.kind) if isinstance(part, Visual) else _make_text_part(text)
                    for part, text in pairs
                ]
            found.append({"role": message.role, "content": content})
        return found

    def insert_placeholders(self, written: str, said: Sequence[Message]) -> str:
        """A rendered conversation whose texts are marks, with marks for visuals that were listed too, kind by kind.

        Left over or lacking, a visual shows as a mark too few or none, which the caller finds.
        """
        for kind, token in self.tokens.items():
            numbers = [make_placeholder(number) for number in _find_listed_visuals(said, self.roles_with_lists, kind)]
            pieces = written.split(token)
            if numbers and len(pieces) == len(numbers) + 1:
                written = "".join(text + number for text, number in zip(pieces, [*numbers, ""], strict=True))
        return written


def is_complete(marked: str, parts: Sequence[Part]) -> bool:
    """Whether every part stands once, texts in their order and visuals in theirs; these may stand elsewhere among those."""
    numbers = [int(found) for found in PLACEHOLDER.findall(marked)]
    if sorted(numbers) != list(range(len(parts))):
        return False
    kinds = ([n for n in numbers if isinstance(parts[n], kind)] for kind in (Text, Visual))
    return all(kind == sorted(kind) for kind in kinds)


def _find_listed_visuals(said: Sequence[Message], listed: frozenset[Role], kind: str) -> Iterator[int]:
    number = 0
    for message in said:
        for part in message.parts:
            if isinstance(part, Visual) and part.kind == kind and message.role in listed:
                yield number
            number += 1


def _find_roles_with_lists(render: Render, image: str) -> Iterator[Role]:
    """Roles whose contents may be lists, where the user's may."""
    user = {"role": "user", "content": [_make_visual_part("image"), _make_text_part(make_placeholder(0))]}
    written = _try_render(render, [user])
    if written.count(image) != 1 or make_placeholder(0) not in written:
        return
    yield "user"
    told = [_make_text_part(make_placeholder(1))]
    if make_placeholder(1) in _try_render(render, [{"role": "system", "content": told}, user]):
        yield "system"
    if make_placeholder(1) in _try_render(render, [user, {"role": "assistant", "content": told}]):
        yield "assistant"


def _try_render(render: Render, messages: list[dict[str, Any]]) -> str:
    try:
        return render(messages, False)
    except DataError:  # a Jinja that takes no lists
        return ""


def _make_visual_part(kind: str) -> dict[str, str]:
    return {"type": kind}


def _make_text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
