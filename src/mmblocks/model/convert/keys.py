"""Tensor names of every checkpoint layout: one table per layout, from our prefix to theirs."""

import re
from collections.abc import Iterable, Mapping

NameTable = Mapping[str, str]
"""Our prefix -> theirs. The first prefix that matches counts, so the longer of two that begin alike stands first."""

HUB: NameTable = {
    "encoder.vision_model.": "vision_tower.vision_model.",
    "projector.body.0.": "multi_modal_projector.linear_1.",
    "projector.head.": "multi_modal_projector.linear_2.",
    "learned_tokens.newline": "image_newline",
    "backbone.lm.model.": "language_model.model.",
    "backbone.lm.lm_head.": "language_model.lm_head.",
}
"""The names on the hub, and the only ones that vLLM's SigLIP loader accepts: exports use them."""

IN_MEMORY: NameTable = {
    "encoder.vision_model.": "model.vision_tower.",
    "projector.body.0.": "model.multi_modal_projector.linear_1.",
    "projector.head.": "model.multi_modal_projector.linear_2.",
    "learned_tokens.newline": "model.image_newline",
    "backbone.lm.model.": "model.language_model.",
    "backbone.lm.lm_head.": "lm_head.",
}

HF_LAYOUTS: Mapping[str, NameTable] = {
    "hub": HUB,
    "transformers 4.52": {**IN_MEMORY, "encoder.vision_model.": "model.vision_tower.vision_model."},
    "transformers 5, hub prefixes": {**HUB, "encoder.vision_model.": "vision_tower."},
    "transformers 5, in-memory names": IN_MEMORY,
}
"""Every layout that transformers has written for the LLaVAs; `llava` has no newline."""


BLIP2: NameTable = {
    "projector.body.ln_vision.": "vision_model.post_layernorm.",
    "encoder.vision_model.": "vision_model.",
    "projector.body.query_tokens": "query_tokens",
    "projector.body.qformer.": "qformer.",
    "projector.head.": "language_projection.",
    "backbone.lm.": "language_model.",
}
"""transformers' `blip2` and `instructblip`, on the hub and in memory. The norm's name begins the tower's: it goes first."""


def make_original_table(projector: NameTable) -> NameTable:
    """Names in LLaVA's own checkpoints, given those of its projector."""
    return {
        "encoder.vision_model.": "model.vision_tower.vision_tower.vision_model.",
        **projector,
        "learned_tokens.newline": "model.image_newline",
        "backbone.lm.model.embed_tokens.": "model.embed_tokens.",
        "backbone.lm.model.layers.": "model.layers.",
        "backbone.lm.model.norm.": "model.norm.",
        "backbone.lm.lm_head.": "lm_head.",
    }


def to_theirs(ours: str, table: NameTable) -> str:
    """Their name of a tensor for ours; a name that is not in the table is returned unchanged."""
    return _replace_prefix(ours, table.items())


def to_ours(theirs: str, table: NameTable) -> str:
    """Our name of a tensor for theirs; a name that is not in the table is returned unchanged."""
    return _replace_prefix(theirs, ((theirs_prefix, ours_prefix) for ours_prefix, theirs_prefix in table.items()))


def _replace_prefix(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for before, after in prefixes:
        if name.startswith(before):
            return after + name[len(before) :]
    return name


UNUSED = (
    (r"encoder\.vision_model\.post_layernorm\.", "features are taken before the encoder's final LayerNorm"),
    (r"encoder\.vision_model\.head\.", "the encoder's pooling head is not part of the model"),
    (r".*\.(rotary_emb\.inv_freq|position_ids)$", "computed from the config, not learned"),
)
BLOCK = re.compile(r"encoder\.vision_model\.encoder\.layers\.(\d+)\.")


def find_unused_reason(ours: str, encoder_blocks: int, may_remain: Mapping[str, str] | None = None) -> str | None:
    """Why a tensor that the model does not hold may stay in the checkpoint; None when it may not."""
    block = BLOCK.match(ours)
    if block and int(block[1]) >= encoder_blocks:
        return "a block after the layer that features are taken from"
    known = [*UNUSED, *(may_remain or {}).items()]
    return next((reason for pattern, reason in known if re.match(pattern, ours)), None)
