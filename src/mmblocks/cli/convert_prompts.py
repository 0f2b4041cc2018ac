"""Whether the prompts of a model are those of a checkpoint's own processor: the same ids, visual tokens counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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

ChatMessages = list[dict[str, Any]]
PromptIds = list[int | None]
"""Ids of a prompt, None in the rows of visuals."""
Prompter = Callable[[ChatMessages], PromptIds]
"""A prompt's ids. Raises where a template refuses it."""


def check_prompts(model: OneVision, source: Path, written: Path, *, asked_for: bool) -> None:
    """Compare a model's prompts with those of the source's processor and of the result's, and say how many are the same.

    Raises `CheckpointError` where those of the source differ, unless the template was asked for, and where what we wrote
    for ourselves differs.
    """
    if model.backbone.tokenizer_source is None:
        print("prompts  not compared: there is no text tokenizer")
        return
    ours, tokenizer = _make_model_prompter(Processor.from_model(model)), model.backbone.text_tokenizer
    if _compare_prompts(ours, source, "the source", tokenizer) and not asked_for:
        raise CheckpointError(
            "the model would be prompted otherwise than its own processor does; nothing was kept. Take a chat template by "
            "name with --template (`mmblocks list template`)."
        )
    if _compare_prompts(ours, written, "the result", tokenizer) and detect_layout(written) == "mmblocks":
        raise CheckpointError(
            "the written model would be prompted otherwise than the one that was read; nothing was kept."
        )


def _compare_prompts(ours: Prompter, folder: Path, name: str, tokenizer: Any) -> bool:
    """Say how prompts compare with those of a folder, and whether some differ."""
    try:
        theirs = _make_folder_prompter(folder)
    except Exception as cause:  # transformers raises of every kind for a processor that lacks something
        print(f"prompts  not compared: no processor can be read from {name} ({_take_first_line(cause)})")
        return False
    if theirs is None:
        print(f"prompts  not compared: the code of {name} chooses its chat template by the name of the model")
        return False
    pairs = [pair for probe in PROBES if (pair := _encode_pair(ours, theirs, _make_messages(probe))) is not None]
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    print(f"prompts  {len(pairs) - len(differing)} of {len(pairs)} are those of {name}")
    for mine, wanted in differing[:1]:
        print(
            f"differs  {_format_difference(mine, wanted, tokenizer)}\n   from  {_format_difference(wanted, mine, tokenizer)} ({name})"
        )
    return bool(differing)


def _encode_pair(ours: Prompter, theirs: Prompter, talk: ChatMessages) -> tuple[Any, Any] | None:
    """Both prompts of a conversation, or why ours is refused; None for one that theirs does not take."""
    try:
        wanted = theirs(talk)
    except Exception:  # a template or processor refuses in any way that Python has
        return None
    try:
        return ours(talk), wanted
    except MMBlocksError as cause:
        return f"refused: {_take_first_line(cause)}", wanted


def _format_difference(ids: Any, others: Any, tokenizer: Any, beside: int = 4) -> str:
    """The tokens around the first that differs from those of another prompt, or why there is no prompt."""
    if isinstance(ids, str):
        return ids
    pairs = zip(ids, others, strict=False) if not isinstance(others, str) else ()
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(others)))
    shown = ids[max(0, at - beside) : at + beside]
    return " ".join("(visual)" if i is None else repr(tokenizer.convert_ids_to_tokens(i)) for i in shown)


def _make_model_prompter(processor: Processor) -> Prompter:
    def encode_prompt(talk: ChatMessages) -> PromptIds:
        encoded = processor.encode_conversation_prompt(Conversation.from_messages(talk))
        ids: PromptIds = encoded.input_ids.tolist()
        for row in encoded.visual_positions.tolist():
            ids[row] = None
        return ids

    return encode_prompt


def _make_folder_prompter(folder: Path) -> Prompter | None:
    """How a checkpoint prompts by its own code; None for LLaVA's, which asks for a template's name."""
    kind = detect_layout(folder)
    if kind == "original":
        return None
    if kind == "mmblocks":
        return _make_model_prompter(Processor.from_spec(localise_spec(read_spec(folder), folder)))
    return _of_processor(read_processor(folder), bare=kind in QFORMER_FAMILIES)


def _of_processor(processor: Any, *, bare: bool) -> Prompter:
    def encode_prompt(talk: ChatMessages) -> PromptIds:
        image = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
        return [
            None if token == image else token for token in (_encode_bare if bare else _encode_chat)(processor, talk)
        ]

    return encode_prompt


def _encode_chat(processor: Any, talk: ChatMessages) -> Sequence[int]:
    # Within limits first: transformers renders it in this process, without any.
    plain = [{**m, "content": [{"type": p["type"], "text": p.get("text", "")} for p in m["content"]]} for m in talk]
    if isinstance(jinja := processor.chat_template, str):
        render_template(jinja, {"messages": plain, "add_generation_prompt": True}, "its processor's chat template")
    found = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(found["input_ids"][0])


def _encode_bare(processor: Any, talk: ChatMessages) -> Sequence[int]:
    """BLIP-2 takes one text and one image."""
    (message,) = talk
    images = [part["image"] for part in message["content"] if part["type"] == "image"]
    (text,) = (part["text"] for part in message["content"] if part["type"] == "text")
    return list(processor(text=text, images=images[0] if images else None)["input_ids"][0])


def _make_messages(probe: Sequence[Mapping[str, Any]]) -> ChatMessages:
    """A probe with images to open."""
    image = Image.new("RGB", (160, 90), (200, 60, 30))
    return [
        {**message, "content": [{**p, "image": image} if p["type"] == "image" else p for p in message["content"]]}
        for message in probe
    ]


def _take_first_line(cause: Exception) -> str:
    return str(cause).strip().partition("\n")[0]
