"""The chat template of a foreign checkpoint: its own, as one of ours where that writes the same prompts, else as it is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from mmblocks.backbones.text_tokenizer import StoredChat, find_chat_template, read_processor_chat
from mmblocks.components import templates
from mmblocks.conversation import Conversation
from mmblocks.errors import MMBlocksError
from mmblocks.model.convert import read_raw_config
from mmblocks.model.convert.transformers.jinja import FLATTENED, make_form, to_jinja
from mmblocks.registry import Spec, split_spec
from mmblocks.templates.contents import RefusedByTemplate
from mmblocks.templates.rendering import TemplateLimitError
from mmblocks.templates.span_tokenizer import SpanTokenizer, make_prompt_spans

log = logging.getLogger(__name__)

OWN_TEMPLATE = "tokenizer"
"""Our template that renders the Jinja of the backbone's text tokenizer."""
TEMPLATES_BY_TEXT = {
    "<|im_start|>": "qwen_2",
    "<|start_header_id|>": "llava_llama_3",
    "<start_of_turn>": "gemma_instruct",
    "<<SYS>>": "llama_2",
    "[INST]": "mistral_instruct",
    "ASSISTANT:": "vicuna_v1",
}
"""Chat templates by a text that a tokenizer's own template writes, in the order they are tried."""
TEMPLATES_BY_END = {
    "<|im_end|>": "qwen_2",
    "<|eot_id|>": "llava_llama_3",
    "<end_of_turn>": "gemma_instruct",
    "</s>": "vicuna_v1",
}
"""Chat templates by the token that ends their turns, in the order they are tried."""
MISTRAL = ("mistral", "llava_mistral")
"""Families that end their turns like Vicuna and write them otherwise."""
DEFAULT = "qwen_2"
ASKED_FOR = "as asked for"

_IMAGE = {"type": "image", "image": "probe"}
_USER: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "What is it?"}]}
_WITH_IMAGE: dict[str, Any] = {"role": "user", "content": [_IMAGE, {"type": "text", "text": "What is it?"}]}
_WITH_IMAGES: dict[str, Any] = {
    "role": "user",
    "content": [_IMAGE, _IMAGE, {"type": "text", "text": "Do they differ?"}],
}
_ANSWER: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": "A red circle."}]}
_SPACED: dict[str, Any] = {
    "role": "user",
    "content": [{"type": "text", "text": " See \n"}, _IMAGE, {"type": "text", "text": " .\n"}],
}
_SYSTEM: dict[str, Any] = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
PROBES: tuple[tuple[dict[str, Any], ...], ...] = (
    (_USER,),
    (_WITH_IMAGE,),
    (_WITH_IMAGES,),
    (_SPACED,),
    (_USER, _ANSWER, _USER),
    (_WITH_IMAGE, _ANSWER, _USER, _ANSWER, _WITH_IMAGES),
    (_SYSTEM, _USER),
    (_SYSTEM, _WITH_IMAGE, _ANSWER, _USER),
)
"""Prompts in chat messages: with and without images, white space, earlier turns and a system text."""


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """A chat template, why it was taken, and whether that was a guess in the absence of anything to go by."""

    spec: Spec
    reason: str
    is_guess: bool = False

    def __str__(self) -> str:
        return f"{split_spec(self.spec)[0]} ({self.reason})"


def choose_chat_template(folder: Path, tokenizer: Any | None, wanted: Spec | None = None) -> ChatChoice:
    """The chat template of a checkpoint: the one that is wanted; ours whose prompts are those of the stored one; the
    stored one itself; and a guess where none is stored or it cannot be followed. It is logged with its reason.
    """
    found = ChatChoice(wanted, ASKED_FOR) if wanted is not None else _choose_by_stored(folder, tokenizer)
    log.info("chat template: %s", found)
    return found


def _choose_by_stored(folder: Path, tokenizer: Any | None) -> ChatChoice:
    stored = read_stored_chat(folder, tokenizer)
    if stored is None:
        name, why = _guess_template(folder, tokenizer)
        return ChatChoice(name, f"a guess: no chat template is stored, {why}", is_guess=why == "default")
    if (known := _written_by_us(stored.jinja)) is not None:
        return ChatChoice(known, f"written by mmblocks in {stored.file}")
    if tokenizer is None:
        return _replace_by_guess(folder, None, stored, "there is no text tokenizer to render it")
    return _followed(folder, tokenizer, stored)


def read_stored_chat(folder: Path, tokenizer: Any | None) -> StoredChat | None:
    """The chat template that a checkpoint came with: its processor's, else its text tokenizer's."""
    if (found := read_processor_chat(folder)) is not None:
        return found
    jinja = find_chat_template(tokenizer)
    return None if jinja is None else StoredChat(jinja, "tokenizer_config.json")


def _written_by_us(jinja: str) -> str | None:
    if jinja.startswith(FLATTENED):
        return OWN_TEMPLATE
    return next((name for name in _list_candidates() if to_jinja(templates.build(name)) == jinja), None)


def _list_candidates() -> list[str]:
    """Our templates that are made of closed turns, the usual ones first."""
    named = dict.fromkeys([*TEMPLATES_BY_END.values(), *TEMPLATES_BY_TEXT.values(), *templates])
    return [n for n in named if not templates.find_faults(n) and make_form(templates.build(n)) is not None]


# By its prompts -----------------------------------------------------------------------------------------------------


def _followed(folder: Path, tokenizer: Any, stored: StoredChat) -> ChatChoice:
    """Ours that writes the same prompts, else the stored one, else a guess that says why."""
    own = copy.copy(tokenizer)
    own.chat_template = stored.jinja
    prompts = [_render_prompt(OWN_TEMPLATE, own, probe) for probe in PROBES]
    if not isinstance(prompts[0], list):
        return _replace_by_guess(folder, own, stored, str(prompts[0]))
    wanted = {i: prompt for i, prompt in enumerate(prompts) if not isinstance(prompt, RefusedByTemplate)}
    for name in _list_candidates():
        if all(_render_prompt(name, own, PROBES[i]) == ids for i, ids in wanted.items()):
            return ChatChoice(name, f"it writes the prompts of {stored.file}, {len(wanted)} of {len(wanted)} tried")
    return ChatChoice(OWN_TEMPLATE, f"kept as it stands in {stored.file}: none of ours writes its prompts")


def _render_prompt(
    name: str, tokenizer: Any, messages: Sequence[Mapping[str, Any]]
) -> list[int | None] | MMBlocksError:
    """The ids of a prompt, None for a visual, or why there is none."""
    template = templates.build(name, text_tokenizer=lambda: tokenizer)
    try:  # a template that had to be stopped is told at once, whatever else might be taken
        spans = make_prompt_spans(template, Conversation.from_messages(messages).messages)
        to_ids = SpanTokenizer(tokenizer, template)
    except TemplateLimitError:
        raise
    except MMBlocksError as cause:
        return cause
    ids: list[int | None] = []
    for is_text, group in groupby(spans, lambda span: isinstance(span.content, str)):
        run = [replace(span, learn=False) for span in group]
        ids += [t for t, _ in to_ids.to_ids(run, behind_visual=None in ids)] if is_text else [None] * len(run)
    return ids


# By guess -----------------------------------------------------------------------------------------------------------


def _replace_by_guess(folder: Path, tokenizer: Any | None, stored: StoredChat, reason: str) -> ChatChoice:
    """A guess in place of a stored template."""
    name, why = next(_written_in(stored.jinja), None) or _guess_template(folder, tokenizer)
    reason = reason.removeprefix("conversation: ").rstrip(".")
    return ChatChoice(name, f"a guess: {why}; {stored.file} cannot be followed, {reason}", is_guess=why == "default")


def _written_in(jinja: str) -> Iterator[tuple[str, str]]:
    return (
        (name, f"the stored chat template writes {text}") for text, name in TEMPLATES_BY_TEXT.items() if text in jinja
    )


def _guess_template(folder: Path, tokenizer: Any | None) -> tuple[str, str]:
    """A template by the token that ends a turn, and why."""
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    end = next((end for end in TEMPLATES_BY_END if end in vocabulary), None)
    family = _family(folder)
    if end in (None, "</s>") and family in MISTRAL:
        return "mistral_instruct", f"the language model is of the family {family}"
    if end == "<|im_end|>" and family in ("llama", "llava_llama"):
        return "chatml_direct", f"{end} is in the vocabulary of a Llama, as in LLaVA-v1.6-34b"
    return (DEFAULT, "default") if end is None else (TEMPLATES_BY_END[end], f"{end} is in the vocabulary")


def _family(folder: Path) -> str:
    """The family of the language model; LLaVA's own config says it by the class."""
    config = read_raw_config(folder)
    if "LlavaLlamaForCausalLM" in (config.get("architectures") or ()):
        return "llama"
    text = config.get("text_config")
    return str((text if isinstance(text, dict) else config).get("model_type"))
