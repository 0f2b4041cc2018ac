"""The model that lmms-eval's `--model_args` name."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import torch

from mmblocks.errors import ConfigError
from mmblocks.model.loading import load
from mmblocks.model.onevision import OneVision
from mmblocks.settings import make_unknown_fault


def load_model(pretrained: str, *, device: str | None, max_frames: int | None, **options: Any) -> OneVision:
    """The model, ready to answer. options: of `mmblocks.load`.

    device: under several processes "auto" and "cuda" are each process's own GPU. max_frames: of videos, instead of the
    model's own. Raises `ConfigError` for a model whose tokenizer of videos has no such setting.
    """
    model = load(str(pretrained), device=_choose_own_device(device), **options).eval()
    if max_frames is not None:
        video = model.router.video
        if not hasattr(video, "max_frames"):
            raise ConfigError(
                f"max_frames={max_frames}: the model's tokenizer of videos, {type(video).__name__}, has no such setting; "
                "leave it out."
            )
        model.router = replace(model.router, video=replace(video, max_frames=int(max_frames)))  # type: ignore[type-var]
    return model


def refuse_unknown_arguments(unknown: Iterable[str], known: Collection[str]) -> None:
    """Raise `ConfigError` that names each argument that nothing reads, and the closest one that is."""
    names = list(unknown)
    if names:
        faults = [make_unknown_fault(name, f"model_args: there is no {name!r}.", known) for name in names]
        raise ConfigError(" ".join(f"{fault.message} {fault.cure}" for fault in faults))


def _choose_own_device(device: str | None) -> str:
    rank = os.environ.get("LOCAL_RANK")
    if device in (None, "", "auto", "cuda") and rank is not None and torch.cuda.is_available():
        return f"cuda:{rank}"
    return device or "auto"
