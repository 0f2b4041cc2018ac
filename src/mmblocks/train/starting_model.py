"""The components that a run takes from the model it starts from, instead of writing them again in the recipe."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmblocks.errors import MMBlocksError
from mmblocks.hub import HubReference
from mmblocks.model.loading import LocatedModel, locate_model, read_located_spec, read_stored_images
from mmblocks.model.spec import ModelSpec
from mmblocks.pretrained import find_cached_folder, forbid_fetching, may_fetch
from mmblocks.settings import find_differing_keys

log = logging.getLogger(__name__)

NO_MODEL = ("random", "pretrained")
"""Values of `weights` that name no whole model."""
COMPONENTS = (*(key.removeprefix("model.") for key in ModelSpec().list_slots()), "images")
"""What `from_weights` may name: every component, and how images are read."""


def find_start(raw: Mapping[str, Any]) -> str | None:
    """The whole model that a recipe starts from; None where it starts from random weights or from its components' own."""
    weights = raw.get("weights", "random")
    return weights if isinstance(weights, str) and weights not in NO_MODEL else None


def is_on_this_machine(reference: str) -> bool:
    """Whether a model is a folder, or its settings are in the hub's cache. Uses no network."""
    return Path(reference).exists() or find_cached_folder(reference, "config.json") is not None


def adopt_components(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose `from_weights` components are those of the model that it starts from.

    Only settings are read, and downloaded where that is allowed. While the model is not on this machine and may not be
    fetched, the recipe stays as it is: its own composition stands in. Raises `CheckpointError` for a model that cannot be
    read.
    """
    start, slots = find_start(raw), raw.get("from_weights")
    if start is None or not slots or not isinstance(raw.get("model"), Mapping):
        return dict(raw)
    if not may_fetch() and not is_on_this_machine(start):
        return dict(raw)
    stored, own = _read_composition(start), ModelSpec.from_dict(raw["model"]).to_dict()
    model = {**own, "tokenizer": dict(own["tokenizer"])}
    for slot in (slot for slot in slots if slot in COMPONENTS):  # `check_run` names others
        part, _, scenario = slot.partition(".")
        if scenario:
            model[part][scenario] = stored[part][scenario]
        else:
            model[part] = stored[part]
    log.info("%s gives the run its %s", start, ", ".join(slots))
    if differing := find_differing_keys(own, model):
        log.info("these settings are not the recipe's: %s", ", ".join(differing))
    return {**raw, "model": model}


def adopt_offline(raw: Mapping[str, Any]) -> dict[str, Any]:
    """As `adopt_components`, without a network; a model that cannot be read leaves the recipe as it is, too."""
    try:
        with forbid_fetching():
            return adopt_components(raw)
    except MMBlocksError:  # `check_run` says why
        return dict(raw)


def _read_composition(reference: str) -> dict[str, Any]:
    """Every setting of a model's components and of its image reading. Files of the hub stay named by their repository."""
    located = locate_model(reference, weights=False)
    spec = read_located_spec(located).to_dict() | {"images": read_stored_images(located).to_dict()}
    return spec | {"backbone": _name_tokenizer(spec["backbone"], located, reference)}


def _name_tokenizer(backbone: Mapping[str, Any], located: LocatedModel, reference: str) -> dict[str, Any]:
    """The repository instead of its folder in the hub's cache, which is another one on the next machine."""
    is_cached = backbone.get("text_tokenizer") == str(located.folder.resolve()) and HubReference.parse(reference)
    return {**backbone, "text_tokenizer": reference} if is_cached and located.origin else dict(backbone)


def describe_absent_start(raw: Mapping[str, Any]) -> str | None:
    """What figures of a recipe rest on while the model that it starts from is not on this machine; None where it is."""
    start = find_start(raw)
    if start is None or not raw.get("from_weights") or is_on_this_machine(start):
        return None
    reference = HubReference.parse(start)
    cure = "" if reference is None else f" ({reference.download_command})"
    return f"{start} is not on this machine{cure}; until then the recipe's own composition stands in for its."
