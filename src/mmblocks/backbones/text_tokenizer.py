"""Text tokenizers, with the chat template that transformers' processors would use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.errors import CheckpointError
from mmblocks.json_files import read_object
from mmblocks.pretrained import find_cached_folder, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class StoredChat:
    """A chat template (Jinja) and the file that holds it."""

    jinja: str
    file: str


def read_text_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The text tokenizer of a hub id or a folder. A chat template of the processor beside it replaces the tokenizer's."""
    tokenizer = read_tokenizer(source)
    folder = Path(source) if Path(source).exists() else find_cached_folder(source, "tokenizer_config.json")
    if folder is not None and (stored := read_processor_chat(folder)) is not None:
        tokenizer.chat_template = stored.jinja
    return tokenizer


def read_processor_chat(folder: Path) -> StoredChat | None:
    """The chat template that transformers' processors take from a folder (`ProcessorMixin.get_processor_dict`).

    Looked for in processor_config.json, chat_template.json and chat_template.jinja, in this order. Raises
    `CheckpointError` for a damaged file.
    """
    for name in ("processor_config.json", "chat_template.json"):
        if (folder / name).is_file() and (
            jinja := _pick_default_template(read_object(folder / name).get("chat_template"))
        ) is not None:
            return StoredChat(jinja, name)
    file = folder / "chat_template.jinja"
    if not file.is_file():
        return None
    try:
        return StoredChat(file.read_text(encoding="utf-8"), file.name)
    except (OSError, UnicodeDecodeError) as cause:
        raise CheckpointError(f"{file} cannot be read ({cause}); the file is truncated or damaged.") from cause


def find_chat_template(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """The Jinja chat template of a text tokenizer; None where it has none."""
    return _pick_default_template(getattr(tokenizer, "chat_template", None))


def _pick_default_template(stored: object) -> str | None:
    """The template that is stored, or of several by name the one called "default"."""
    if isinstance(stored, list):
        named = [each for each in stored if isinstance(each, Mapping)]
        stored = {each.get("name"): each.get("template") for each in named if isinstance(each.get("name"), str)}
    jinja = stored.get("default") if isinstance(stored, Mapping) else stored
    return jinja if isinstance(jinja, str) and jinja else None
