"""The chat template of a foreign checkpoint: one of ours that writes the same prompts, else the checkpoint's Jinja."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmblocks.backbones.text_tokenizer import StoredChat, find_chat_template, read_processor_chat
from mmblocks.components import templates
from mmblocks.conversation import Conversation
from mmblocks.errors import MMBlocksError
from mmblocks.model.convert import read_raw_config
from mmblocks.model.convert.transformers.jinja import FLATTENED, make_form, to_jinja
from mmblocks.registry import Spec, split_spec
from mmblocks.templates.contents import RefusedByTemplate
from mmblocks.templates.rendering import TemplateLimitError
from mmblocks.templates.span_tokenizer import SpanTokenizer, TextTokenizer, make_prompt_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
"""Chat templates by a text in the tokenizer's own template, in the order they are tried."""
TEMPLATES_BY_END = {
    "<|im_end|>": "qwen_2",
    "<|eot_id|>": "llava_llama_3",
    "<end_of_turn>": "gemma_instruct",
    "</s>": "vicuna_v1",
}
"""Chat templates by the token that ends their turns, in the order they are tried."""
MISTRAL = ("mistral", "llava_mistral")
"""Families whose turns end like Vicuna's and differ otherwise."""
DEFAULT = "qwen_2"
ASKED_FOR = "as requested"

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
    """A chat template, why it was chosen, and whether it is the default for lack of any evidence."""

    spec: Spec
    reason: str
    is_guess: bool = False

    def __str__(self) -> str:
        return f"{split_spec(self.spec)[0]} ({self.reason})"


def choose_chat_template(
    folder: Path, tokenizer: PreTrainedTokenizerBase | None, requested: Spec | None = None
) -> ChatChoice:
    """The chat template of a checkpoint, logged with its reason.

    The requested one; else ours whose prompts are those of the stored one; else the stored one; else a guess, where none
    is stored or it cannot be rendered.
    """
    choice = ChatChoice(requested, ASKED_FOR) if requested is not None else _choose_by_stored(folder, tokenizer)
    log.info("chat template: %s", choice)
    return choice


def read_stored_chat(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> StoredChat | None:
    """The chat template that a checkpoint came with: its processor's, else its text tokenizer's."""
    if (stored := read_processor_chat(folder)) is not None:
        return stored
    jinja = find_chat_template(tokenizer)
    return None if jinja is None else StoredChat(jinja, "tokenizer_config.json")


def _choose_by_stored(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> ChatChoice:
    """Ours that is, or writes the prompts of, the stored one; else the stored one; else a guess with its reason."""
    stored = read_stored_chat(folder, tokenizer)
    if stored is None:
        name, why = _guess_template(folder, tokenizer)
        return ChatChoice(name, f"a guess: no chat template is stored, {why}", is_guess=why == "default")
    usual = dict.fromkeys([*TEMPLATES_BY_END.values(), *TEMPLATES_BY_TEXT.values(), *templates])
    candidates = [n for n in usual if not templates.find_faults(n) and make_form(templates.build(n)) is not None]
    identical = next((name for name in candidates if to_jinja(templates.build(name)) == stored.jinja), None)
    if stored.jinja.startswith(FLATTENED) or identical is not None:
        return ChatChoice(identical or OWN_TEMPLATE, f"written by mmblocks in {stored.file}")
    if tokenizer is None:
        return _replace_by_guess(folder, None, stored, "there is no text tokenizer to render it")
    own = copy.copy(tokenizer)
    own.chat_template = stored.jinja
    prompts = [_render_prompt(OWN_TEMPLATE, own, probe) for probe in PROBES]
    if not isinstance(prompts[0], list):
        return _replace_by_guess(folder, own, stored, str(prompts[0]))
    wanted = {i: prompt for i, prompt in enumerate(prompts) if not isinstance(prompt, RefusedByTemplate)}
    for name in candidates:
        if all(_render_prompt(name, own, PROBES[i]) == ids for i, ids in wanted.items()):
            return ChatChoice(name, f"it writes the prompts of {stored.file}, {len(wanted)} of {len(wanted)} tried")
    return ChatChoice(OWN_TEMPLATE, f"kept as it is in {stored.file}: none of ours writes its prompts")


def _render_prompt(
    name: str, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
) -> list[int | None] | MMBlocksError:
    """The ids of a prompt, None for a visual, or why there is none."""
    template, text_tokenizer = templates.build(name, text_tokenizer=lambda: tokenizer), cast(TextTokenizer, tokenizer)
    try:
        spans = make_prompt_spans(template, Conversation.from_messages(messages).messages)
        to_ids = SpanTokenizer(text_tokenizer, template)
    except TemplateLimitError:  # a template that had to be stopped is an error, whatever others there are
        raise
    except MMBlocksError as cause:
        return cause
    ids: list[int | None] = []
    for is_text, group in groupby(spans, lambda span: isinstance(span.content, str)):
        run = [replace(span, learn=False) for span in group]
        ids += to_ids.to_ids(run, behind_visual=None in ids)[0] if is_text else [None] * len(run)
    return ids


def _replace_by_guess(
    folder: Path, tokenizer: PreTrainedTokenizerBase | None, stored: StoredChat, reason: str
) -> ChatChoice:
    """A guess in place of a stored template."""
    text = next((text for text in TEMPLATES_BY_TEXT if text in stored.jinja), None)
    name, why = _guess_template(folder, tokenizer)
    if text is not None:
        name, why = TEMPLATES_BY_TEXT[text], f"the stored chat template writes {text}"
    reason = reason.removeprefix("conversation: ").rstrip(".")
    return ChatChoice(name, f"a guess: {why}; {stored.file} cannot be followed, {reason}", is_guess=why == "default")


def _guess_template(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str]:
    """A template by the token that ends a turn, and why."""
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    end = next((end for end in TEMPLATES_BY_END if end in vocabulary), None)
    config = read_raw_config(folder)
    text = config.get("text_config")
    family = str((text if isinstance(text, dict) else config).get("model_type"))
    if "LlavaLlamaForCausalLM" in (config.get("architectures") or ()):  # LLaVA's own config has it in the class name
        family = "llama"
    if end in (None, "</s>") and family in MISTRAL:
        return "mistral_instruct", f"the language model is of the family {family}"
    if end == "<|im_end|>" and family in ("llama", "llava_llama"):
        return "chatml_direct", f"{end} is in the vocabulary of a Llama, as in LLaVA-v1.6-34b"
    return (DEFAULT, "default") if end is None else (TEMPLATES_BY_END[end], f"{end} is in the vocabulary")
