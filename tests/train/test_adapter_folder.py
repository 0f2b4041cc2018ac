"""A stage's folder of adapters is whole: on the model that the stage started from it gives the trained one."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import mmblocks
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.errors import CheckpointError
from mmblocks.model.convert.adapter import apply_adapter
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.trainable import train_only
from mmblocks.train import run
from mmblocks.train.adapters.lora import add_lora, merge_lora, save_adapter
from mmblocks.train.stages import Lora

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads the old name
SIGLIP = {"name": "siglip", "image_px": 28, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
BESIDE = [
    ["projector"],
    ["learned_tokens"],
    ["projector", "learned_tokens"],
    ["encoder", "projector", "learned_tokens"],
]


@pytest.fixture
def exportable(tiny_spec):
    spec = {**tiny_spec, "encoder": SIGLIP, "template": "qwen_2", "tokenizer": {}}
    return mmblocks.build(spec, seed=0).eval()


def learned(model, parts, seed=1):
    """The model with adapters, after what learns has moved."""
    add_lora(model, Lora(1e-2, rank=4, alpha=8.0, dropout=0.0))
    train_only(model, ["lora", *parts])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def theirs(folder):
    return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()


def logits(model):
    """Of an image of one tile and a newline behind each of its rows, and some words."""
    torch.manual_seed(3)
    image = model.config.image_token_id
    pixels, sizes = torch.randn(1, 2, 3, 28, 28), torch.tensor([[28, 28]])
    ids = torch.tensor([[5, *[image] * (2 * 2 + 2 * 2 + 2), 7, 9, 11]])
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels, image_sizes=sizes).logits


@PEFT_WARNS
@pytest.mark.parametrize("parts", BESIDE, ids="+".join)
def test_peft_makes_the_trained_model_of_the_export_and_the_folder(exportable, tmp_path, parts):
    base = export_hf(exportable, tmp_path / "base")
    learned(exportable, parts)
    folder = save_adapter(exportable, tmp_path / "adapter", source=str(base))
    merge_lora(exportable)
    trained = theirs(export_hf(exportable, tmp_path / "trained"))
    got, want = peft.PeftModel.from_pretrained(theirs(base), folder).eval(), logits(trained)
    assert (want - logits(theirs(base))).abs().max() > 1e-2
    torch.testing.assert_close(logits(got), want, rtol=1e-4, atol=1e-5)  # two products for one in adapted layers
    merged = got.merge_and_unload().state_dict()
    state = trained.state_dict()
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], state[name]) for name in state)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_projector_is_one_of_pefts_modules_to_save(exportable, tmp_path):
    folder = save_adapter(learned(exportable, ["projector", "learned_tokens"]), tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["multi_modal_projector"]
    names = {name for name in load_file(folder / "adapter_model.safetensors") if "lora_" not in name}
    assert names == {
        "base_model.model.model.image_newline",
        *(
            f"base_model.model.model.multi_modal_projector.linear_{n}.{kind}"
            for n in (1, 2)
            for kind in ("weight", "bias")
        ),
    }


def test_what_did_not_learn_is_not_in_it(exportable, tmp_path):
    folder = save_adapter(learned(exportable, []), tmp_path)
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] is None


CHANGES = {
    "a projector of another kind": {"projector": "gated"},
    "a projector of three layers": {"projector": {"name": "mlp", "depth": 3}},
    "an encoder of our own": {"encoder": {"name": "tiny_conv", "view_px": 24, "dim": 16, "widths": [8, 8], "heads": 2}},
    "marks of our own": {"tokenizer": {"image": "pad_newline", "video": "slow_fast"}},
}


@pytest.mark.parametrize("base", ["transformers", "backbone"])
@pytest.mark.parametrize("changes", [{}, *CHANGES.values()], ids=["exportable", *CHANGES])
def test_the_folder_makes_the_trained_model_of_the_model_that_it_started_from(tiny_spec, tmp_path, changes, base):
    spec = {**tiny_spec, "encoder": SIGLIP, **changes}
    trained = learned(mmblocks.build(spec, seed=0), ["encoder", "projector", "learned_tokens"])
    folder = save_adapter(trained, tmp_path, base=base)
    merge_lora(trained)
    model = mmblocks.build(spec, seed=0)
    apply_adapter(model, folder)
    want = trained.state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())


def test_what_pefts_files_cannot_hold_is_said_and_listed(tiny_spec, tmp_path, caplog):
    model = learned(mmblocks.build({**tiny_spec, "projector": "gated"}, seed=0), ["projector", "learned_tokens"])
    folder = save_adapter(model, tmp_path)
    names = {f"projector.{name}" for name in model.projector.state_dict()}
    assert set(load_file(folder / "beside.safetensors")) == names
    page = (folder / "README.md").read_text()
    assert all(f"`{name}`" in page for name in names)
    assert all(name in caplog.text for name in names)
    assert "no place for" in caplog.text


def test_a_folder_of_another_model_is_refused(tiny_spec, tmp_path):
    folder = save_adapter(learned(mmblocks.build(tiny_spec, seed=0), ["projector"]), tmp_path)
    deeper = {**tiny_spec, "encoder": {**tiny_spec["encoder"], "dim": 24}}
    with pytest.raises(CheckpointError, match=r"projector\.body\.0\.weight is for a \(32, 16\), where the model has"):
        apply_adapter(mmblocks.build(deeper, seed=0), folder)
    with pytest.raises(CheckpointError, match="not an adapter folder that can be read"):
        apply_adapter(mmblocks.build(tiny_spec, seed=0), tmp_path / "nowhere")


STAGE = {"name": "tune", "data": [{"name": "tinyworld", "task": "single"}], "steps": 2, "global_batch_size": 2}
TRAIN = {"projector": 1e-2, "learned_tokens": 1e-2, "encoder": 1e-3, "lora": {"lr": 1e-2, "rank": 4}}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stage_writes_it_whole(recipe, tmp_path, weights, trained, ranks):
    recipe = {**recipe, "ema": 0.5, "stages": [{**STAGE, "train": TRAIN}]}
    if ranks == 1:
        run(recipe)
    else:
        assert trained(recipe, ranks=ranks) == [0] * ranks
    model = mmblocks.build(recipe["model"], seed=0)
    apply_adapter(model, tmp_path / "run/model/adapter")
    want = weights(tmp_path / "run/model")
    assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())
    world = sources.build("tinyworld", task="single")
    batch = collate([Processor.from_model(model).make_training_sample(world[7])])
    assert torch.equal(
        mmblocks.load(tmp_path / "run/model").eval().compute_logits(batch), model.eval().compute_logits(batch)
    )
