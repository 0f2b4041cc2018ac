"""What lmms-eval reads through the entry point `lmms_eval.models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]


def make_manifest() -> ModelManifest:
    """The classes behind `--model mmblocks`: the chat class for tasks that generate, the simple one with `--force_simple`."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(
        model_id="mmblocks",
        simple_class_path="mmblocks.eval.lmms.simple.SimpleModel",
        chat_class_path="mmblocks.eval.lmms.chat.ChatModel",
    )
