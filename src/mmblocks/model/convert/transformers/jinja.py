"""Chat templates in transformers' language: the same text as our spans, with <image> and <video> where visuals stand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from mmblocks.backbones.text_tokenizer import chat_template_of
from mmblocks.templates.chatml import ChatML
from mmblocks.templates.llama_2 import Llama2
from mmblocks.templates.llama_3 import Llama3
from mmblocks.templates.llava_v0 import Headed
from mmblocks.templates.tokenizer_chat import TokenizerChat
from mmblocks.templates.turns import Turns
from mmblocks.templates.vicuna import Vicuna

Around = tuple[str, str]
"""What stands before and after."""

PARTS = (
    "{%- macro parts(content, strip=false, before='', after='') -%}"
    "{%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}"
    "{%- if part['type'] != 'text' -%}{{ before + '<' + part['type'] + '>' + after }}"
    "{%- else -%}"
    "{%- set text = part['text'].lstrip() if strip and loop.first else part['text'] -%}"
    "{{ text.rstrip() if strip and loop.last else text }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- endmacro -%}"
)
FLATTENED = PARTS + (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set said = {'role': message['role'], 'content': parts(message['content'])} -%}"
    "{%- set flat.messages = flat.messages + [said] -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
"""Stands before a text tokenizer's own template: contents become texts, as our template 'tokenizer' gives them to it."""
FIRST_IS_SYSTEM = "messages and messages[0]['role'] == 'system'"
NO_OTHER_SYSTEM = "{{ raise_exception('a system message can only be the first one') }}"


@dataclass(frozen=True)
class Form:
    """A chat as texts around what is said.

    start: before everything. default: the system text of a conversation without one. told: around the system text, in
    front of all turns or, with `inside`, at the beginning of the user's first message. between: before a user's message
    that is not the first. opening: what an answer to be written follows. strip: drop a message's outer white space.
    """

    user: Around
    assistant: Around
    told: Around
    opening: str
    default: str | None
    start: str = ""
    inside: bool = False
    between: str = ""
    around_visuals: Around = ("", "")
    strip: bool = False


@singledispatch
def form_of(template: Any) -> Form | None:
    """The form of a chat template; None for one that is not made of closed turns."""
    return None


def jinja_of(template: Any) -> str | None:
    """A chat template as Jinja; None for one that has no form there."""
    if isinstance(template, TokenizerChat):
        return _own(template)
    form = form_of(template)
    return None if form is None else _written(form)


def _own(template: TokenizerChat) -> str | None:
    """The text tokenizer's own template; `arguments` for it have no place in Jinja."""
    if template.text_tokenizer is None or template.arguments:
        return None
    own = chat_template_of(template.text_tokenizer())
    if own is None:
        return None
    return own if template.takes_lists else FLATTENED + own


# The forms ----------------------------------------------------------------------------------------------------------


@form_of.register
def _(template: ChatML) -> Form:
    user, assistant, system = (_chatml(role) for role in ("user", "assistant", "system"))
    return Form(user, assistant, system, assistant[0], template.system)


def _chatml(role: str) -> Around:
    return f"<|im_start|>{role}\n", "<|im_end|>\n"


@form_of.register
def _(template: Turns) -> Form:
    end = template.end + template.after
    inside = template.system_head is None
    return Form(
        user=(template.user_head, end),
        assistant=(template.assistant_head, end),
        told=("", "\n\n") if inside else (str(template.system_head), end),
        opening=template.assistant_head,
        default=template.system,
        inside=inside,
    )


@form_of.register
def _(template: Llama2) -> Form:
    return Form(
        user=("[INST] ", " [/INST]"),
        assistant=(" ", " </s>"),
        told=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        opening="",
        default=template.system,
        inside=True,
        between=template.between,
        around_visuals=template.around_visuals,
    )


@form_of.register
def _(template: Llama3) -> Form:
    user, assistant, system = (_llama_3(role) for role in ("user", "assistant", "system"))
    return Form(user, assistant, system, assistant[0], template.system, start="<|begin_of_text|>", strip=True)


def _llama_3(role: str) -> Around:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"


@form_of.register
def _(template: Vicuna) -> Form:
    return Form(
        user=("USER: ", " "),
        assistant=("ASSISTANT: ", "</s>"),
        told=("", " "),
        opening="ASSISTANT:",
        default=template.system,
        around_visuals=template.around_visuals,
    )


@form_of.register
def _(template: Headed) -> Form:
    return Form(
        user=("Human: ", "###"),
        assistant=("Assistant: ", "###"),
        told=("", "###"),
        opening="Assistant:",
        default=template.system,
        around_visuals=template.around_visuals,
    )


# A form as Jinja ----------------------------------------------------------------------------------------------------


def _written(form: Form) -> str:
    front = "" if form.inside else _if("parts(told.system)", _shown(form, form.told, "told.system"))
    opening = _if("add_generation_prompt", _out(_text(form.opening))) if form.opening else ""
    return PARTS + _system(form) + (_out(_text(form.start)) if form.start else "") + front + _turns(form) + opening


def _system(form: Form) -> str:
    """`told.system` and `turns`: a system message replaces the default, and an empty one means none."""
    default = f"{{%- set told = namespace(system={_text(form.default or '')}) -%}}{{%- set turns = messages -%}}"
    given = "{%- set told.system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    return default + _if(FIRST_IS_SYSTEM, given)


def _turns(form: Form) -> str:
    said = "message['content']"
    assistant = _shown(form, form.assistant, said, form.around_visuals)
    roles = (
        f"{{%- if message['role'] == 'user' -%}}{_asked(form, said)}"
        f"{{%- elif message['role'] == 'assistant' -%}}{assistant}"
        f"{{%- else -%}}{NO_OTHER_SYSTEM}{{%- endif -%}}"
    )
    return f"{{%- for message in turns -%}}{roles}{{%- endfor -%}}"


def _asked(form: Form, said: str) -> str:
    """A user's message, the first perhaps with the system text."""
    between = _if("not loop.first", _out(_text(form.between))) if form.between else ""
    if not form.inside:
        return between + _shown(form, form.user, said, form.around_visuals)
    told = _shown(form, form.told, "told.system") + "{%- set told.system = '' -%}"
    head, tail = form.user
    return (
        between
        + _out(_text(head))
        + _if("parts(told.system)", told)
        + _shown(form, ("", tail), said, form.around_visuals)
    )


def _shown(form: Form, around: Around, content: str, around_visuals: Around = ("", "")) -> str:
    """A message's content between two texts."""
    before, after = (_text(text) for text in around_visuals)
    strip = "true" if form.strip else "false"
    said = f"parts({content}, {strip}, {before}, {after})"
    return _out(f"{_text(around[0])} + {said} + {_text(around[1])}")


def _if(condition: str, then: str) -> str:
    return f"{{%- if {condition} -%}}{then}{{%- endif -%}}"


def _out(expression: str) -> str:
    return f"{{{{ {expression} }}}}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
