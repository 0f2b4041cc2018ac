"""Chat templates as Jinja for transformers: the same text as our spans, with <image> and <video> in place of visuals."""

import json
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from mmblocks.backbones.text_tokenizer import find_chat_template
from mmblocks.components import ChatTemplate
from mmblocks.templates.chatml import ChatML
from mmblocks.templates.llama_2 import Llama2
from mmblocks.templates.llama_3 import Llama3
from mmblocks.templates.tokenizer_chat import TokenizerChat
from mmblocks.templates.turns import Turns
from mmblocks.templates.vicuna import LlavaV0, Vicuna

Around = tuple[str, str]
"""Text before and text after."""

PARTS_MACRO = (
    "{%- macro part_text(part, first=true, last=true, strip=false, before='', after='') -%}"
    "{%- if part['type'] != 'text' -%}{{ before + '<' + part['type'] + '>' + after }}"
    "{%- else -%}"
    "{%- set text = part['text'].lstrip() if strip and first else part['text'] -%}"
    "{{ text.rstrip() if strip and last else text }}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{%- macro parts(content, strip=false) -%}"
    "{%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}"
    "{{ part_text(part, loop.first, loop.last, strip) }}"
    "{%- endfor -%}"
    "{%- endmacro -%}"
)
FLATTENED = PARTS_MACRO + (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set plain = namespace(content='') -%}"
    "{%- if message['content'] is string -%}{%- set plain.content = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- set plain.content = plain.content + part_text(part) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': plain.content}] -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
"""Placed before a text tokenizer's own template: contents become plain texts, as our template 'tokenizer' passes them."""
ROLES = ("user", "assistant", "system")
FIRST_IS_SYSTEM = "messages and messages[0]['role'] == 'system'"
NO_OTHER_SYSTEM = "{{ raise_exception('a system message can only be the first one') }}"


@dataclass(frozen=True)
class ChatForm:
    """A chat template as the texts around its messages.

    start: before everything. default_system: the system text of a conversation without one. system: around the system
    text, in front of all turns or, with `inside`, at the beginning of the user's first message. between: before a user's
    message that is not the first. opening: before the answer to be written. strip: drop a message's outer white space.
    """

    user: Around
    assistant: Around
    system: Around
    opening: str
    default_system: str | None
    start: str = ""
    inside: bool = False
    between: str = ""
    around_visuals: Around = ("", "")
    strip: bool = False


@singledispatch
def make_form(template: ChatTemplate) -> ChatForm | None:
    """The form of a chat template; None for one that is not made of closed turns."""
    return None


def to_jinja(template: ChatTemplate) -> str | None:
    """A chat template as Jinja; None for one that has no form there."""
    own: Any = template
    if isinstance(own, TokenizerChat):
        if own.text_tokenizer is None or own.arguments:  # Jinja has no place for arguments
            return None
        jinja = find_chat_template(own.text_tokenizer())
        return jinja if jinja is None or own.takes_lists else FLATTENED + jinja
    form = make_form(template)
    if form is None:
        return None
    default = _quote_text(form.default_system or "")
    # A system message replaces the default, and an empty one means none.
    system = f"{{%- set system = namespace(text={default}) -%}}{{%- set turns = messages -%}}" + _render_if(
        FIRST_IS_SYSTEM, "{%- set system.text = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    )
    start = _render_output(_quote_text(form.start)) if form.start else ""
    front = "" if form.inside else _render_if("parts(system.text)", _render_system(form))
    assistant = _render_message(form, form.assistant, form.around_visuals)
    turns = (
        f"{{%- for message in turns -%}}{{%- if message['role'] == 'user' -%}}{_render_user_message(form)}"
        f"{{%- elif message['role'] == 'assistant' -%}}{assistant}"
        f"{{%- else -%}}{NO_OTHER_SYSTEM}{{%- endif -%}}{{%- endfor -%}}"
    )
    opening = _render_if("add_generation_prompt", _render_output(_quote_text(form.opening))) if form.opening else ""
    return PARTS_MACRO + system + start + front + turns + opening


# The forms ----------------------------------------------------------------------------------------------------------


@make_form.register
def _(template: ChatML) -> ChatForm:
    user, assistant, system = ((f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES)
    return ChatForm(user, assistant, system, assistant[0], template.system)


@make_form.register
def _(template: Turns) -> ChatForm:
    end = template.end + template.after
    inside = template.system_head is None
    return ChatForm(
        user=(template.user_head, end),
        assistant=(template.assistant_head, end),
        system=("", "\n\n") if inside else (str(template.system_head), end),
        opening=template.assistant_head,
        default_system=template.system,
        inside=inside,
    )


@make_form.register
def _(template: Llama2) -> ChatForm:
    return ChatForm(
        user=("[INST] ", " [/INST]"),
        assistant=(" ", " </s>"),
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        opening="",
        default_system=template.system,
        inside=True,
        between=template.between,
        around_visuals=template.around_visuals,
    )


@make_form.register
def _(template: Llama3) -> ChatForm:
    user, assistant, system = ((f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>") for role in ROLES)
    return ChatForm(user, assistant, system, assistant[0], template.system, start="<|begin_of_text|>", strip=True)


@make_form.register
def _(template: Vicuna) -> ChatForm:
    return ChatForm(
        user=("USER: ", " "),
        assistant=("ASSISTANT: ", "</s>"),
        system=("", " "),
        opening="ASSISTANT:",
        default_system=template.system,
        around_visuals=template.around_visuals,
    )


@make_form.register
def _(template: LlavaV0) -> ChatForm:
    return ChatForm(
        user=("Human: ", "###"),
        assistant=("Assistant: ", "###"),
        system=("", "###"),
        opening="Assistant:",
        default_system=template.system,
        around_visuals=template.around_visuals,
    )


# A form as Jinja ----------------------------------------------------------------------------------------------------


def _render_user_message(form: ChatForm) -> str:
    """A user's message, the first perhaps with the system text."""
    between = _render_if("not loop.first", _render_output(_quote_text(form.between))) if form.between else ""
    if not form.inside:
        return between + _render_message(form, form.user, form.around_visuals)
    system = _render_system(form) + "{%- set system.text = '' -%}"
    head, tail = form.user
    return (
        between
        + _render_output(_quote_text(head))
        + _render_if("parts(system.text)", system)
        + _render_message(form, ("", tail), form.around_visuals)
    )


def _render_message(form: ChatForm, around: Around, around_visuals: Around = ("", "")) -> str:
    """A message's content between two texts.

    Servers take images as parts of a message only where a template has a plain loop over `message['content']`.
    """
    before, after = (_quote_text(text) for text in around_visuals)
    options = f"{_render_bool(form.strip)}, {before}, {after}"
    whole = f"part_text({{'type': 'text', 'text': message['content']}}, true, true, {options})"
    piece = f"part_text(part, loop.first, loop.last, {options})"
    loop = f"{{%- for part in message['content'] -%}}{_render_output(piece)}{{%- endfor -%}}"
    content = f"{{%- if message['content'] is string -%}}{_render_output(whole)}{{%- else -%}}{loop}{{%- endif -%}}"
    head, tail = (_render_output(_quote_text(text)) if text else "" for text in around)
    return head + content + tail


def _render_system(form: ChatForm) -> str:
    """The system text between its two texts."""
    before, after = map(_quote_text, form.system)
    return _render_output(f"{before} + parts(system.text, {_render_bool(form.strip)}) + {after}")


def _render_bool(value: bool) -> str:
    return "true" if value else "false"


def _render_if(condition: str, then: str) -> str:
    return f"{{%- if {condition} -%}}{then}{{%- endif -%}}"


def _render_output(expression: str) -> str:
    return f"{{{{ {expression} }}}}"


def _quote_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
