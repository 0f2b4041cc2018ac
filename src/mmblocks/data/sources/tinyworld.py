from typing import Literal

from mmblocks.conversation import Conversation
from mmblocks.data import tinyworld
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError


@sources.register("tinyworld", source="made by mmblocks", tiny={"task": "single", "size": 16})
class TinyWorld:
    """Images, image sets and videos of coloured shapes with exact questions and answers, drawn as they are read.

    task: text, caption, single, by_shape, small, multi or video. split: "train" or "heldout"; no scene is in both.
    kinds: question types to ask, by default all of the task (caption, single, small, multi and video have some to choose).
    turns: most questions asked about the same media. size: conversations until the source repeats itself.
    """

    is_synthetic = True

    def __init__(
        self,
        task: Literal["text", "caption", "single", "by_shape", "small", "multi", "video"],
        split: Literal["train", "heldout"] = "train",
        turns: int = 1,
        kinds: tuple[str, ...] = (),
        seed: int = 0,
        size: int = 1_000_000,
    ) -> None:
        if turns < 1 or size < 1:
            raise ConfigError(
                f"source 'tinyworld': turns={turns} and size={size} must be at least 1.", settings=["turns", "size"]
            )
        known = tinyworld.KINDS.get(task, ())
        if strange := [kind for kind in kinds if kind not in known]:
            offered = f"one of {', '.join(known)}" if known else "none: this task takes no kinds"
            raise ConfigError(
                f"source 'tinyworld': kinds={strange}; with task={task!r} write {offered}.", settings=["kinds", "task"]
            )
        self.task: tinyworld.Task = task
        self.split: tinyworld.Split = split
        self.turns, self.seed, self.size, self.kinds = turns, seed, size, tuple(kinds)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        made = tinyworld.make_record(
            self.task, index, seed=self.seed, split=self.split, turns=self.turns, kinds=self.kinds
        )
        return Conversation.from_messages(made["messages"], self.describe_origin(index))

    def describe_origin(self, number: int) -> str:
        """What errors call a record."""
        return f"tinyworld {self.split} {self.task} {number}"
