"""PEFT on transformers' own LLaVA checkpoints: a stage's folder of adapters gives the trained model, whatever learned beside."""

import peft
import pytest
import torch
import transformers

from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.trainable import train_only
from mmblocks.train.adapters.lora import add_lora, merge_lora, save_adapter
from mmblocks.train.stages import Lora


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads the old name
@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_next_video"])
@pytest.mark.parametrize("parts", [["projector"], ["encoder", "projector", "marks"]], ids="+".join)
def test_the_adapter_of_an_imported_checkpoint_is_whole_on_the_checkpoint(make_rig, tmp_path, family, parts):
    rig = make_rig(family)
    ours = rig.ours
    add_lora(ours, Lora(1e-3, rank=2))
    train_only(ours, ["lora", *parts])
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    folder = save_adapter(ours, tmp_path / "adapter")
    merge_lora(ours)
    export_hf(ours, tmp_path / "trained", family)
    base, trained = (
        transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
        for path in (rig.folder, tmp_path / "trained")
    )
    got = peft.PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    for name, weight in trained.state_dict().items():
        if "post_layernorm" not in name:  # no feature passes it
            assert torch.equal(got[name], weight), name
