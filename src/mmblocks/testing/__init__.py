"""The laws that parts of mmblocks keep, for those who write their own.

    from mmblocks.testing import check_projector

    def test_my_projector_keeps_the_laws():
        check_projector(MyProjector, expansion=2.0)

A check takes a class or factory with small settings, or a registered name. It raises `LawBroken`, an AssertionError that
lists every broken law and the shape that shows it. mmblocks asks its own parts the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmblocks import components
from mmblocks.registry import Spec
from mmblocks.testing import backbones, encoders, poolings, projectors, tokenizers
from mmblocks.testing.laws import ConformanceCheck, ConformanceError, Subject, describe_check, require_conformance

__all__ = [
    "CHECKS",
    "ConformanceError",
    "check_backbone",
    "check_encoder",
    "check_pooling",
    "check_projector",
    "check_tokenizer",
    "describe_check",
]

Part = Callable[..., Any] | Spec

CHECKS: dict[str, tuple[ConformanceCheck, ...]] = {
    "encoder": encoders.CHECKS,
    "projector": projectors.CHECKS,
    "pooling": poolings.CHECKS,
    "tokenizer": tokenizers.CHECKS,
    "backbone": backbones.CHECKS,
}
"""The laws of each kind, to be asked one by one: `law(Subject.of(registry, part, settings))`."""


def check_encoder(part: Part, /, **settings: Any) -> None:
    """Ask a vision encoder every law of encoders."""
    _check_part("encoder", part, settings)


def check_projector(part: Part, /, **settings: Any) -> None:
    """Ask a projector every law of projectors, on several grids."""
    _check_part("projector", part, settings)


def check_pooling(part: Part, /, **settings: Any) -> None:
    """Ask a pooling every law of poolings, on several grids."""
    _check_part("pooling", part, settings)


def check_tokenizer(part: Part, /, **settings: Any) -> None:
    """Ask a visual tokenizer every law of tokenizers, for fifty sizes of images and clips."""
    _check_part("tokenizer", part, settings)


def check_backbone(part: Part, /, **settings: Any) -> None:
    """Ask a language model every law of backbones."""
    _check_part("backbone", part, settings)


def _check_part(kind: str, part: Part, settings: dict[str, Any]) -> None:
    require_conformance(CHECKS[kind], Subject.from_part(components.REGISTRIES[kind], part, settings))
