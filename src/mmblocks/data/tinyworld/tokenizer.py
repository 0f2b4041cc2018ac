"""A byte-level BPE tokenizer learned from TinyWorld's own words."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .record import TASKS, make_record

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
ROLES = "system\nuser\nassistant\nYou are a helpful assistant.\n"


def build_tokenizer(path: Path | None = None, *, vocab_size: int = 640, records: int = 3000) -> "Tokenizer":
    """Train on the text of `records` records of every task; saved as tokenizer.json when `path` is given.

    Every word of TinyWorld, with and without the space before it, becomes one token; any other
    text falls back to bytes, so nothing is unknown.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [ROLES]
    for task in TASKS:
        for index in range(records):
            for message in make_record(task, index)["messages"]:
                texts += [part["text"] for part in message["content"] if part["type"] == "text"]
    # Single words, spaced and bare, so that merges never join a word to its neighbour.
    words = sorted({word for text in texts for word in re.findall(r"[A-Za-z]+", text)})
    tokenizer.train_from_iterator((form for word in words for form in (word, f" {word}")), trainer)
    if path is not None:
        tokenizer.save(str(path))
    return tokenizer
