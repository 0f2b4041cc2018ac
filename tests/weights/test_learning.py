"""Trained parts learn: projector and adapters on drawings; export and import keep what the language model has learned."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

import mmblocks
from mmblocks import conf, train
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.train.adapters.lora import add_lora, merge_lora
from mmblocks.train.stages import Lora
from tests.weights.measures import MAX_NEW_TOKENS, RECIPE, answer_texts

pytestmark = pytest.mark.weights

QUESTION = "What is the capital of France?"


def test_projector_and_adapters_learn_names_of_drawings(language_model, encoder_file, emoji, tmp_path):
    """Both stages of the recipe, a few steps each."""
    overrides = [
        f"out={tmp_path / 'run'}",
        f"model.encoder.checkpoint={encoder_file}",
        f"model.backbone.checkpoint={language_model}",
        f"cache_features={tmp_path / 'features'}",
        f"stages.align.data.0.path={emoji.parent / 'captions.jsonl'}",
        f"stages.instruct.data.0.path={emoji.parent / 'questions.jsonl'}",
        "stages.align.steps=10",
        "stages.instruct.steps=6",
        "stages.instruct.global_batch_size=4",
        "log_every=1",
    ]
    folder = train.run(conf.compose_run(str(RECIPE), overrides))
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for stage, share in (("align", 0.95), ("instruct", 0.8)):
        losses = [row["loss"] for row in logged if row["stage"] == stage]
        assert sum(losses[-2:]) < share * sum(losses[:2]), losses
    answers = answer_texts(mmblocks.load(folder).eval(), [QUESTION])
    assert "Paris" in answers[0]


@pytest.fixture(scope="module")
def exportable(language_model):
    """The language model beside a SigLIP tower, random and small: families of transformers have no EfficientNet."""
    siglip = {"name": "siglip", "image_px": 28, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
    spec = {
        "encoder": siglip,
        "projector": "mlp",
        "backbone": {
            "name": "causal_lm",
            "checkpoint": str(language_model),
            "vocab_size": 49216,
        },  # for <image>, <video>
        "template": "tokenizer",
    }
    model = mmblocks.build(spec, seed=0)
    model.backbone.load_pretrained()
    return model.eval()


def test_adapters_learn_a_text_and_export_and_import_keep_the_answers(exportable, tmp_path):
    answer = "It is Paris, the city of light."
    add_lora(exportable, Lora(lr=2e-3, rank=8, alpha=16.0, dropout=0.0))
    talk = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
    processor = mmblocks.Processor.from_model(exportable)
    batch = mmblocks.collate([processor.make_training_sample(mmblocks.Conversation.from_messages(talk))])
    optimizer = torch.optim.AdamW([p for n, p in exportable.named_parameters() if "lora" in n], lr=2e-3)
    losses = []
    for _ in range(8):
        loss = exportable(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses
    merge_lora(exportable)
    questions = [QUESTION, "Name three fruits."]
    learned = answer_texts(exportable, questions)
    assert learned[0] == answer

    exported = export_hf(exportable, tmp_path / "exported")
    assert answer_texts(mmblocks.load(exported).eval(), questions) == learned
    assert [answer_with_export(exported, question) for question in questions] == learned


@torch.no_grad()
def answer_with_export(folder, question):
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**asked, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    return tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
