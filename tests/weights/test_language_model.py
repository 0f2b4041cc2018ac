"""SmolLM2-135M-Instruct answers and predicts text as in transformers."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import mmblocks
from tests.weights.measures import MAX_NEW_TOKENS, QUESTIONS, answer_texts, compute_perplexity, read_text_ids

pytestmark = pytest.mark.weights


@pytest.fixture(scope="session")
def tokenizer(language_model):
    return AutoTokenizer.from_pretrained(language_model)


@pytest.fixture(scope="session")
def theirs(language_model, joined):
    """transformers' model of the same folder, in the type of ours."""
    dtype = joined.backbone.lm.dtype
    return AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype).eval()


@torch.no_grad()
def answer_with_transformers(lm, tokenizer, question):
    messages = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = lm.generate(**asked, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    return tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_are_those_of_transformers(joined, theirs, tokenizer, question):
    (ours,) = answer_texts(joined, [question])
    assert ours == answer_with_transformers(theirs, tokenizer, question)
    assert ours


def test_answers_are_sensible(joined):
    """The weights are the trained ones."""
    (answer,) = answer_texts(joined, ["What is the capital of France?"])
    assert "Paris" in answer


@torch.no_grad()
def test_the_perplexity_of_a_text_is_that_of_transformers(joined, theirs, tokenizer):
    ids = read_text_ids(tokenizer)
    expected = math.exp(torch.nn.functional.cross_entropy(theirs(ids[None]).logits[0, :-1].float(), ids[1:]).item())
    # bfloat16: attention sums in another order, which moves a loss by some thousandths
    assert compute_perplexity(joined, ids) == pytest.approx(
        expected, rel=1e-5 if theirs.dtype == torch.float32 else 1e-2
    )
    assert expected < 30


@pytest.mark.parametrize(
    ("bits", "theirs", "tolerance"),
    [
        (4, {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, 1e-3),  # the same codes and scales
        (8, {}, 5e-2),  # theirs quantizes activations too
    ],
)
@torch.no_grad()
def test_the_perplexity_in_few_bits_is_about_that_of_transformers(
    language_model, spec, tokenizer, tmp_path, bits, theirs, tolerance
):
    folder = mmblocks.save(mmblocks.build(spec, weights="pretrained", seed=0), tmp_path / "joined")
    settings = BitsAndBytesConfig(**{f"load_in_{bits}bit": True, **theirs})
    lm = AutoModelForCausalLM.from_pretrained(
        language_model, dtype=torch.float32, quantization_config=settings, device_map="cpu"
    ).eval()
    ids = read_text_ids(tokenizer)
    expected = math.exp(torch.nn.functional.cross_entropy(lm(ids[None]).logits[0, :-1].float(), ids[1:]).item())
    assert compute_perplexity(mmblocks.load(folder, bits=bits).eval(), ids) == pytest.approx(expected, rel=tolerance)
