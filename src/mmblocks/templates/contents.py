"""Contents of messages in the form that a Jinja template takes: a text, or a list of parts.

In a list, the template itself places images and videos. While a template is rendered, a placeholder stands for each part of
a message: private characters that no text has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from mmblocks.conversation import Message, Part, Role, Text, Visual
from mmblocks.errors import DataError

PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")
Render = Callable[[list[dict[str, Any]], bool], str]
"""(messages, add_generation_prompt) to text. Raises `RefusedByTemplate` where the Jinja template raises."""


class RefusedByTemplate(DataError):
    """A Jinja template that does not take a conversation."""


def make_placeholder(number: int) -> str:
    """The placeholder of part `number` while a template is rendered."""
    return f"\ue000{number}\ue001"


@dataclass(frozen=True, slots=True)
class ContentFormat:
    """The form of contents that one Jinja template takes.

    roles_with_lists: roles whose contents are lists of parts; those of others are texts, with a placeholder for each image
    or video. tokens: the text that the template writes for an image or video of a list.
    """

    roles_with_lists: frozenset[Role]
    tokens: Mapping[str, str]

    @classmethod
    def from_template(cls, render: Render, text_tokenizer: object) -> ContentFormat:
        """Found by rendering: a role has lists if an image's token and the text beside it come out, as processors need it.

        The token is the text tokenizer's `image_token` or <image>, of videos `video_token` or <video>.
        """
        tokens = {kind: getattr(text_tokenizer, f"{kind}_token", None) or f"<{kind}>" for kind in ("image", "video")}
        return cls(frozenset(_find_roles_with_lists(render, tokens["image"])), tokens)

    def to_messages(self, messages: Sequence[Message], *, texts: bool = False) -> list[dict[str, Any]]:
        """Messages with a placeholder for every part, or with `texts` for images and videos only."""
        numbers = count()
        formatted: list[dict[str, Any]] = []
        for message in messages:
            contents = [
                part.text if texts and isinstance(part, Text) else make_placeholder(number)
                for part, number in zip(message.parts, numbers, strict=False)
            ]
            content: Any = "".join(contents)
            if message.role in self.roles_with_lists:
                content = [
                    _make_visual_part(part.kind) if isinstance(part, Visual) else _make_text_part(text)
                    for part, text in zip(message.parts, contents, strict=True)
                ]
            formatted.append({"role": message.role, "content": content})
        return formatted

    def insert_placeholders(self, rendered: str, messages: Sequence[Message]) -> str:
        """A rendered conversation, its texts placeholders already, with placeholders for listed images and videos too.

        Where a token is missing or written twice, placeholders are missing in the result, which the caller finds.
        """
        parts = [(message.role, part) for message in messages for part in message.parts]
        for kind, token in self.tokens.items():
            placeholders = [
                make_placeholder(number)
                for number, (role, part) in enumerate(parts)
                if role in self.roles_with_lists and isinstance(part, Visual) and part.kind == kind
            ]
            pieces = rendered.split(token)
            if placeholders and len(pieces) == len(placeholders) + 1:
                rendered = "".join(chain(*zip(pieces, [*placeholders, ""], strict=True)))
        return rendered


def is_complete(rendered: str, parts: Sequence[Part]) -> bool:
    """Whether every part stands once, texts in their order and visuals in theirs; visuals may stand elsewhere among texts."""
    numbers = [int(number) for number in PLACEHOLDER.findall(rendered)]
    if sorted(numbers) != list(range(len(parts))):
        return False
    kinds = ([n for n in numbers if isinstance(parts[n], kind)] for kind in (Text, Visual))
    return all(kind == sorted(kind) for kind in kinds)


def _find_roles_with_lists(render: Render, image: str) -> Iterator[Role]:
    """Roles whose contents may be lists; none if the user's may not."""
    user = {"role": "user", "content": [_make_visual_part("image"), _make_text_part(make_placeholder(0))]}
    written = _try_render(render, [user])
    if written.count(image) != 1 or make_placeholder(0) not in written:
        return
    yield "user"
    text = [_make_text_part(make_placeholder(1))]
    if make_placeholder(1) in _try_render(render, [{"role": "system", "content": text}, user]):
        yield "system"
    if make_placeholder(1) in _try_render(render, [user, {"role": "assistant", "content": text}]):
        yield "assistant"


def _try_render(render: Render, messages: list[dict[str, Any]]) -> str:
    try:
        return render(messages, False)
    except DataError:  # a template that takes no lists
        return ""


def _make_visual_part(kind: str) -> dict[str, str]:
    return {"type": kind}


def _make_text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
