"""Conformance checks for components, for those who write their own.

    from mmblocks.testing import check_projector

    def test_my_projector_conforms():
        check_projector(MyProjector, expansion=2.0)

A function takes a class or factory with small settings, or a registered name. It raises `ConformanceError`, an
AssertionError that lists every failed check and the shape or value that shows it. The components of mmblocks are tested by
the same checks.
"""

from collections.abc import Callable
from typing import Any

from mmblocks import components
from mmblocks.registry import Spec
from mmblocks.testing import backbones, encoders, poolings, projectors, tokenizers
from mmblocks.testing.conformance import (
    ConformanceCheck,
    ConformanceError,
    Subject,
    describe_check,
    require_conformance,
)

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
"""The checks of each kind, to be run one by one: `check(Subject.from_part(registry, part, settings))`."""


def check_encoder(part: Part, /, **settings: object) -> None:
    """Run every conformance check of encoders on a vision encoder."""
    _check_part("encoder", part, settings)


def check_projector(part: Part, /, **settings: object) -> None:
    """Run every conformance check of projectors on a projector, for several grids."""
    _check_part("projector", part, settings)


def check_pooling(part: Part, /, **settings: object) -> None:
    """Run every conformance check of poolings on a pooling, for several grids."""
    _check_part("pooling", part, settings)


def check_tokenizer(part: Part, /, **settings: object) -> None:
    """Run every conformance check of tokenizers on a visual tokenizer, for fifty sizes of images and videos."""
    _check_part("tokenizer", part, settings)


def check_backbone(part: Part, /, **settings: object) -> None:
    """Run every conformance check of backbones on a language model."""
    _check_part("backbone", part, settings)


def _check_part(kind: str, part: Part, settings: dict[str, object]) -> None:
    require_conformance(CHECKS[kind], Subject.from_part(components.REGISTRIES[kind], part, settings))
