"""transformers' LlavaOnevision with the weights of a model of ours: the same tensors, so that memory holds them once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmblocks.batch import IGNORE
from mmblocks.model.convert.keys import IN_MEMORY, to_theirs
from mmblocks.model.convert.transformers.tokens import list_pinpoints
from mmblocks.model.convert.transformers.towers import make_tower_config
from mmblocks.model.onevision import OneVision
from tests.bench.suites.cases import Case, map_visual_ids

UNUSED = "model.vision_tower.post_layernorm."
"""Built by transformers and never read for features."""


def make_peer(model: OneVision) -> Any:
    """transformers' model as it is shipped (its own choice of attention), sharing the weights of `model`."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
    from transformers.initialization import no_init_weights

    ids = map_visual_ids(model)
    tied = bool(model.backbone.config.tie_word_embeddings)
    config = LlavaOnevisionConfig(
        **make_tower_config(model),
        text_config=model.backbone.config.to_dict(),
        image_token_index=ids["image"],
        video_token_index=ids["video"],
        image_grid_pinpoints=list_pinpoints(model),
        vision_aspect_ratio=f"anyres_max_{model.router.image.max_tiles}",  # type: ignore[attr-defined]
        tie_word_embeddings=tied,
    )
    with no_init_weights(), torch.device(model.device):
        theirs: nn.Module = LlavaOnevisionForConditionalGeneration(config)
    state = {to_theirs(name, IN_MEMORY): tensor for name, tensor in model.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False, assign=True)
    lacking = [name for name in missing if not name.startswith(UNUSED)]
    assert not lacking, lacking
    assert not unexpected, unexpected
    theirs.tie_weights()
    theirs.model.vision_tower.post_layernorm.to(next(model.parameters()).dtype)
    return theirs.eval()


def make_compiled_peer(model: OneVision) -> Any:
    """Another of these, its tower and its language model compiled when they first run."""
    theirs = make_peer(model)
    theirs.model.vision_tower.compile()
    theirs.model.language_model.compile()
    return theirs


def list_fast_peers(model: OneVision) -> Iterator[tuple[str, Any]]:
    """Further ones with what is installed here to make them fast: FlashAttention, Liger's kernels, both."""
    from transformers.utils import is_flash_attn_2_available

    flash = is_flash_attn_2_available() and model.dtype in (torch.float16, torch.bfloat16)
    liger = find_spec("liger_kernel") is not None
    for has_flash, has_liger in ((True, False), (False, True), (True, True)):
        if has_flash <= flash and has_liger <= liger:
            theirs = make_peer(model)
            if has_flash:
                theirs.set_attn_implementation("flash_attention_2")
            if has_liger:
                use_liger_kernels(theirs)
            yield ", ".join(["FlashAttention"] * has_flash + ["Liger kernels"] * has_liger), theirs


def use_liger_kernels(theirs: Any) -> None:
    """Give a peer's language model Liger's norms, SwiGLU and rotary positions, and no other model of this process."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2, liger_rotary_pos_emb  # type: ignore[import-not-found]
    from transformers.models.qwen2 import modeling_qwen2

    language_model = theirs.model.language_model
    before = {name: getattr(modeling_qwen2, name) for name in ("Qwen2RMSNorm", "Qwen2MLP")}
    apply_liger_kernel_to_qwen2(rope=False, fused_linear_cross_entropy=False, model=language_model)
    vars(modeling_qwen2).update(before)
    run = language_model.forward

    def run_with_liger_rotary(*args: Any, **kwargs: Any) -> Any:
        with patch.object(modeling_qwen2, "apply_rotary_pos_emb", liger_rotary_pos_emb):
            return run(*args, **kwargs)

    language_model.forward = run_with_liger_rotary


def map_peer_names(model: OneVision) -> dict[str, str]:
    """Our names of all parameters, and the peer's."""
    return {name: to_theirs(name, IN_MEMORY) for name, _ in model.named_parameters()}


def compute_last_logits(theirs: nn.Module, inputs: Mapping[str, Any], *, all_logits: bool) -> Tensor:
    """(rows, vocabulary): the logits of each last row of unpadded inputs, out of everyone's or alone."""
    keep = {} if all_logits else {"logits_to_keep": 1}
    return theirs(**inputs, **keep).logits[:, -1]


def compute_padded_loss(theirs: nn.Module, case: Case) -> Tensor:
    """The mean loss as transformers' trainers take it: padded rows, logits of every row in float32."""
    labels = F.pad(case.targets[:, :-1], (1, 0), value=IGNORE)  # labels[i] is the id of row i, targets[i] of row i + 1
    return theirs(**case.padded, labels=labels, use_cache=False).loss


def compute_packed_loss(theirs: nn.Module, case: Case) -> Tensor:
    """The mean loss at the peer's best: one packed row, and logits of labelled rows only."""
    targets = case.batch.targets
    labelled = (targets != IGNORE).nonzero().squeeze(1)
    logits = theirs(**case.packed, logits_to_keep=labelled, use_cache=False).logits[0]
    return F.cross_entropy(logits.float(), targets[labelled])


def copy_to_float32(theirs: nn.Module) -> Any:
    """A copy in float32, by which rounding in a narrower type is judged."""
    return copy.deepcopy(theirs).float()
