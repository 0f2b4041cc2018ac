"""Chat templates in transformers' language: the same text as our spans, with <image> and <video> where visuals stand."""

from __future__ import annotations

import json
from typing import Any

from mmblocks.templates.chatml import ChatML
from mmblocks.templates.vicuna import Vicuna

PARTS = (
    "{%- macro parts(content) -%}"
    "{%- if content is string -%}{{ content }}"
    "{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}{{ '<' + part['type'] + '>' }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)


def jinja_of(template: Any) -> str | None:
    """A chat template as Jinja; None for one that has no form there."""
    if isinstance(template, ChatML):
        return _chatml(template.system)
    if isinstance(template, Vicuna):
        return _vicuna(template.system)
    return None


def _chatml(system: str | None) -> str:
    default = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return (
        PARTS
        + "{%- if messages[0]['role'] != 'system' -%}{{ "
        + json.dumps(default)
        + " }}{%- endif -%}"
        + "{%- for message in messages -%}"
        + r"{{ '<|im_start|>' + message['role'] + '\n' + parts(message['content']) + '<|im_end|>\n' }}"
        + "{%- endfor -%}"
        + r"{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )


def _vicuna(system: str | None) -> str:
    default = f"{system} " if system else ""
    return (
        PARTS
        + "{%- if messages[0]['role'] != 'system' -%}{{ "
        + json.dumps(default)
        + " }}{%- endif -%}"
        + "{%- for message in messages -%}"
        + "{%- if message['role'] == 'system' -%}{{ parts(message['content']) + ' ' }}"
        + "{%- elif message['role'] == 'user' -%}{{ 'USER: ' + parts(message['content']) + ' ' }}"
        + "{%- else -%}{{ 'ASSISTANT: ' + parts(message['content']) + '</s>' }}{%- endif -%}"
        + "{%- endfor -%}"
        + "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
    )
