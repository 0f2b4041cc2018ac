"""Parts that a run trains at rates for tuning although they start random: it works, and ends in a model that sees nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmblocks.faults import Fault
from mmblocks.model.checks.composition import DryBuild
from mmblocks.model.spec import PARTS
from mmblocks.settings import is_of_type
from mmblocks.train.starting_model import find_start

TUNING_LR = 5e-5
"""The largest learning rate that is one for trained weights: transformers' default for fine-tuning. LLaVA-1.5 begins projectors
at 1e-3 (scripts/v1_5/pretrain.sh) and tunes them at 2e-5 (finetune.sh); LLaVA-OneVision at 1e-3, then 1e-5, its encoder at 2e-6.
"""
BEGINNING = "a stage before this one, at a rate such as 1e-3"


def find_random_part_faults(
    raw: Mapping[str, Any], stages: Sequence[tuple[int, Mapping[str, Any]]], seen: DryBuild
) -> Iterator[Fault]:
    """A warning for each part that starts random and meets a rate for tuning before one for beginning.

    Learned tokens count while the projector is random, too. Beside a trained projector they are the few rows that LLaVA-NeXT
    and LLaVA-OneVision themselves learn from random ones at 1e-5.
    """
    random = _list_random_parts(raw, seen)
    for number, stage in _select_running(raw, stages):
        train = stage.get("train")
        rates = {part: _read_rate(given) for part, given in train.items()} if isinstance(train, Mapping) else {}
        tuned = [part for part in random if (rate := rates.get(part)) is not None and rate <= TUNING_LR]
        for part in tuned:
            if part != "learned_tokens" or "projector" in random:
                message = f"{part} starts random and learns at {rates[part]:g}, a rate for weights that are trained."
                yield Fault(f"stages.{number}.train.{part}", message, _suggest_start(part), "warning")
        if "lora" in rates and "backbone" in random:
            message = "lora adapts a backbone that starts random."
            yield Fault(f"stages.{number}.train.lora", message, _suggest_start("backbone"), "warning")
        learned = {*rates, *(["backbone"] if "lora" in rates else [])}
        random = [part for part in random if part not in learned]


def _list_random_parts(raw: Mapping[str, Any], seen: DryBuild) -> list[str]:
    """Parts with weights that a run begins with random ones."""
    if find_start(raw) is not None:
        return []
    if raw.get("weights", "random") == "pretrained":
        random = ["projector", "learned_tokens"]
    else:
        random = [part for part in PARTS if part != "encoder" or raw.get("encoder_pretraining") is None]
    return [part for part in random if seen.count_parameters(part) != 0]


def _select_running(
    raw: Mapping[str, Any], stages: Sequence[tuple[int, Mapping[str, Any]]]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The stages from `first_stage` to `last_stage`."""
    names = [stage.get("name") for _, stage in stages]
    first, last = raw.get("first_stage"), raw.get("last_stage")
    begin = names.index(first) if first in names else 0
    yield from stages[begin : names.index(last) + 1 if last in names else None]


def _read_rate(given: object) -> float | None:
    rate = given.get("lr") if isinstance(given, Mapping) else given
    return float(rate) if isinstance(rate, int | float) and is_of_type(float, rate) else None


def _suggest_start(part: str) -> str:
    own = "weights=pretrained or " if part in ("encoder", "backbone") else ""
    return f"Write {own}weights=org/name, a model in which it is trained, or train it in {BEGINNING}."
