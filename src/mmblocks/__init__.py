"""Composable vision-language components. Importing this package imports no torch; names below are read on first use.

The registries are in `mmblocks.components`: `from mmblocks.components import projectors` (`mmblocks.projectors` is the
package of the projectors themselves).
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "build": "mmblocks.model.build",
    "compose": "mmblocks.model.systems",
    "OneVision": "mmblocks.model.onevision",
    "ModelSpec": "mmblocks.model.spec",
    "save": "mmblocks.model.checkpoint",
    "load": "mmblocks.model.loading",
    "generate": "mmblocks.model.generate",
    "Decoding": "mmblocks.model.generate",
    "Result": "mmblocks.model.generate",
    "Score": "mmblocks.model.generate",
    "Chat": "mmblocks.chat",
    "answer": "mmblocks.chat",
    "respond": "mmblocks.chat",
    "draw_samples": "mmblocks.chat",
    "score": "mmblocks.chat",
    "serve": "mmblocks.server",
    "image": "mmblocks.chat",
    "video": "mmblocks.chat",
    "Conversation": "mmblocks.conversation",
    "Processor": "mmblocks.data.sample.processor",
    "collate": "mmblocks.data.sample.collate",
}

__all__ = [
    "Chat",
    "Conversation",
    "Decoding",
    "ModelSpec",
    "OneVision",
    "Processor",
    "Result",
    "Score",
    "answer",
    "build",
    "collate",
    "compose",
    "draw_samples",
    "generate",
    "image",
    "load",
    "respond",
    "save",
    "score",
    "serve",
    "video",
]

if TYPE_CHECKING:
    from mmblocks.chat import Chat, answer, draw_samples, image, respond, score, video
    from mmblocks.conversation import Conversation
    from mmblocks.data.sample.collate import collate
    from mmblocks.data.sample.processor import Processor
    from mmblocks.model.build import build
    from mmblocks.model.checkpoint import save
    from mmblocks.model.generate import Decoding, Result, Score, generate
    from mmblocks.model.loading import load
    from mmblocks.model.onevision import OneVision
    from mmblocks.model.spec import ModelSpec
    from mmblocks.model.systems import compose
    from mmblocks.server import serve


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmblocks' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
