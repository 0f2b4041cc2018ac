from __future__ import annotations

from typing import Literal

from mmblocks.conversation import Conversation
from mmblocks.data import tinyworld
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError


@sources.register("tinyworld", source="made by mmblocks", tiny={"task": "single", "size": 16})
class TinyWorld:
    """Pictures, picture sets and clips of coloured shapes with exact questions and answers, drawn as they are read.

    task: text, caption, single, by_shape, multi or video. split: "train" or "heldout"; no scene is in both.
    turns: most questions asked about the same media. size: conversations until the source repeats itself.
    """

    def __init__(
        self,
        task: Literal["text", "caption", "single", "by_shape", "multi", "video"],
        split: Literal["train", "heldout"] = "train",
        turns: int = 1,
        seed: int = 0,
        size: int = 1_000_000,
    ) -> None:
        if turns < 1 or size < 1:
            raise ConfigError(f"source 'tinyworld': turns={turns} and size={size} must be at least 1.")
        self.task: tinyworld.Task = task
        self.split: tinyworld.Split = split
        self.turns, self.seed, self.size = turns, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        made = tinyworld.record(self.task, index, seed=self.seed, split=self.split, turns=self.turns)
        return Conversation.of(made["messages"], f"tinyworld {self.split} {self.task} {index}")
