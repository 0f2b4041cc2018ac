"""Compare the prompts of a model with those of a checkpoint's own processor: the same ids, visual tokens counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import CheckpointError, MMBlocksError
from mmblocks.model.checkpoint import localise_spec, read_spec
from mmblocks.model.convert import detect_layout
from mmblocks.model.convert.chat import PROBES
from mmblocks.model.convert.probe import QFORMER_FAMILIES
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import read_processor
from mmblocks.templates.rendering import render_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ChatMessages = list[dict[str, Any]]
PromptIds = list[int | None]
"""Ids of a prompt, None in the rows of visuals."""
Prompter = Callable[[ChatMessages], PromptIds]
"""A prompt's ids. Raises where a template refuses the conversation."""


def check_prompts(model: OneVision, source: Path, written: Path, *, template_is_given: bool) -> None:
    """Compare a model's prompts with those of the source's processor and of the result's, and print how many are equal.

    Raises `CheckpointError` if those of the source differ, unless the user gave the template, and if the result in
    mmblocks' own layout differs.
    """
    if model.backbone.tokenizer_source is None:
        print("prompts  not compared: there is no text tokenizer")
        return
    ours, tokenizer = _make_model_prompter(Processor.from_model(model)), model.backbone.text_tokenizer
    if _compare_prompts(ours, source, "the source", tokenizer) and not template_is_given:
        raise CheckpointError(
            "the model's prompts differ from those of its own processor; nothing was kept. Choose a chat template by "
            "name with --template (`mmblocks list template`)."
        )
    if _compare_prompts(ours, written, "the result", tokenizer) and detect_layout(written) == "mmblocks":
        raise CheckpointError("the prompts of the written model differ from those of the source; nothing was kept.")


def _compare_prompts(ours: Prompter, folder: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Print how prompts compare with those of a folder; whether some differ."""
    try:
        theirs = _make_folder_prompter(folder)
    except Exception as cause:  # transformers raises errors of every kind for an incomplete processor
        print(f"prompts  not compared: no processor can be read from {name} ({_take_first_line(cause)})")
        return False
    if theirs is None:
        print(f"prompts  not compared: the code of {name} chooses its chat template by the name of the model")
        return False
    image = Image.new("RGB", (160, 90), (200, 60, 30))
    pairs: list[tuple[PromptIds | str, PromptIds]] = []
    for probe in PROBES:
        talk = [
            {**message, "content": [{**p, "image": image} if p["type"] == "image" else p for p in message["content"]]}
            for message in probe
        ]
        try:
            wanted = theirs(talk)
        except Exception:  # a template or processor may refuse a conversation with any exception
            continue
        try:
            pairs.append((ours(talk), wanted))
        except MMBlocksError as cause:
            pairs.append((f"refused: {_take_first_line(cause)}", wanted))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    print(f"prompts  {len(pairs) - len(differing)} of {len(pairs)} are those of {name}")
    for mine, wanted in differing[:1]:
        print(f"differs  {_format_difference(mine, wanted, tokenizer)}")
        print(f"   from  {_format_difference(wanted, mine, tokenizer)} ({name})")
    return bool(differing)


def _format_difference(
    ids: PromptIds | str, others: PromptIds | str, tokenizer: PreTrainedTokenizerBase, context: int = 4
) -> str:
    """The tokens around the first that differs from those of another prompt, or why there is no prompt."""
    if isinstance(ids, str):
        return ids
    pairs = zip(ids, others, strict=False) if not isinstance(others, str) else ()
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(others)))
    excerpt = ids[max(0, at - context) : at + context]
    return " ".join("(visual)" if i is None else repr(tokenizer.convert_ids_to_tokens(i)) for i in excerpt)


def _make_model_prompter(processor: Processor) -> Prompter:
    def encode_prompt(talk: ChatMessages) -> PromptIds:
        encoded = processor.encode_conversation_prompt(Conversation.from_messages(talk))
        ids: PromptIds = encoded.input_ids.tolist()
        for row in encoded.visual_positions.tolist():
            ids[row] = None
        return ids

    return encode_prompt


def _make_folder_prompter(folder: Path) -> Prompter | None:
    """How a checkpoint prompts with its own code; None for LLaVA's, which needs the name of a template."""
    kind = detect_layout(folder)
    if kind == "original":
        return None
    if kind == "mmblocks":
        return _make_model_prompter(Processor.from_spec(localise_spec(read_spec(folder), folder)))
    processor = read_processor(folder)

    def encode_prompt(talk: ChatMessages) -> PromptIds:
        image_id = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
        if kind in QFORMER_FAMILIES:  # a BLIP-2 reads one text and one image
            (message,) = talk
            images = [part["image"] for part in message["content"] if part["type"] == "image"]
            (text,) = (part["text"] for part in message["content"] if part["type"] == "text")
            encoded = processor(text=text, images=images[0] if images else None)
        else:
            # First within limits of time and memory: transformers renders the template in this process without any.
            plain = [
                {**m, "content": [{"type": p["type"], "text": p.get("text", "")} for p in m["content"]]} for m in talk
            ]
            if isinstance(jinja := processor.chat_template, str):
                variables = {"messages": plain, "add_generation_prompt": True}
                render_template(jinja, variables, "its processor's chat template")
            encoded = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True)
        return [None if token == image_id else token for token in encoded["input_ids"][0]]

    return encode_prompt


def _take_first_line(cause: Exception) -> str:
    return str(cause).strip().partition("\n")[0]
