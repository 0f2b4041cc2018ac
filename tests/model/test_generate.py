"""Answers are those of transformers' own `generate`, whatever the family and whatever else is in the batch."""

import json

import pytest
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import TextStreamer

from mmblocks.components import backbones
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding, StopSequences, generate, generate_from_embeddings
from mmblocks.model.generation.sampling import RandomNumbers, SamplingRule, TokenSampler
from mmblocks.model.generation.step import DecodingStep, acquire_step, reasons_against_capture, release_step
from mmblocks.model.generation.stopping import find_end_tokens
from mmblocks.model.generation.store import KVCache
from mmblocks.model.generation.writing import decode_answers, prefill_prompts, prepare_step
from mmblocks.train.adapters.lora import add_lora
from mmblocks.train.stages import Lora
from tests.families import FAMILIES, TINY, family, lively

RED = Image.new("RGB", (60, 40), "red")
CLIP = torch.arange(5 * 20 * 30 * 3).remainder(256).to(torch.uint8).view(5, 20, 30, 3).numpy()
NO_END = StopSequences((), ())


def asked(*content):
    return Conversation.from_messages([{"role": "user", "content": [*content]}])


ASKED = [
    asked({"type": "image", "image": RED}, {"type": "text", "text": "What colour is the circle?"}),
    asked({"type": "text", "text": "How many?"}),
    asked({"type": "video", "video": CLIP}, {"type": "text", "text": "What is moving?"}),
    asked({"type": "image", "image": RED}, {"type": "text", "text": "or"}, {"type": "image", "image": RED}),
]


def prompts(model, conversations):
    return collate([Processor.from_model(model).make_prompt_sample(c) for c in conversations])


@pytest.fixture
def backbone():
    return family("qwen2")


@pytest.fixture
def model(tiny_model):
    lively(tiny_model.backbone)
    return tiny_model


def ids_of(answers):
    return [list(one.ids) for one in answers]


def written(*args, **settings):
    """The ids that `generate_from_embeddings` gives."""
    return ids_of(generate_from_embeddings(*args, **settings))


def theirs(backbone, x, lengths, **settings):
    """New ids (prompts, tokens) that transformers writes on prompts padded in front."""
    mask = pad_sequence([torch.ones(n, dtype=torch.int64) for n in lengths], batch_first=True, padding_side="left")
    padded = pad_sequence(list(x.split(lengths)), batch_first=True, padding_side="left")
    settings = {"do_sample": False, "pad_token_id": 0, **settings}
    return backbone.lm.generate(inputs_embeds=padded, attention_mask=mask, **settings).tolist()


def run_step(step, tokens):
    step.ids.copy_(tokens)
    return step()


def test_a_temperature_may_be_a_whole_number(backbone):
    x, settings = torch.randn(5, 32), {"max_new_tokens": 4, "seed": 1}
    assert written(backbone, x, [5], Decoding(temperature=2, top_p=1, **settings), NO_END) == written(
        backbone, x, [5], Decoding(temperature=2.0, **settings), NO_END
    )


# As transformers writes -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_writes_what_transformers_writes(name):
    backbone, lengths = family(name), [5, 9, 1]
    x = backbone.embed_tokens(torch.randint(1, 60, (15,)))
    ours = written(backbone, x, lengths, Decoding(max_new_tokens=10), NO_END)
    assert ours == theirs(backbone, x, lengths, max_new_tokens=10)
    assert len({token for row in ours for token in row}) > 2  # no constant that any cache would give


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_read_before_need_not_be_read_again(name):
    backbone = family(name)
    x = backbone.embed_tokens(torch.randint(1, 60, (21,)))
    whole, parts = KVCache(2), KVCache(2)
    first, second = x[:12], x[12:]
    want = prefill_prompts(backbone, whole, x, [12, 9])
    prefill_prompts(backbone, parts, torch.cat([first[:7], second[:2]]), [7, 2])
    got = prefill_prompts(backbone, parts, torch.cat([first[7:], second[2:]]), [5, 7])
    assert parts.lengths == whole.lengths == [12, 9]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # fp32: products of fewer rows


SAMPLED = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 2.0, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9},
]


def draw_alike(monkeypatch, seed, keys):
    """transformers draws with our random numbers of these prompts; everything before the draw is its own."""
    numbers = RandomNumbers(seed, [(key, 0) for key in keys])

    def multinomial(probabilities, num_samples):
        sums = probabilities.double().cumsum(-1)
        return torch.searchsorted(sums, numbers.draw()[:, None] * sums[:, -1:], right=True)

    monkeypatch.setattr(torch, "multinomial", multinomial)


@torch.no_grad()
@pytest.mark.parametrize("settings", SAMPLED, ids=str)
@pytest.mark.parametrize("lengths", [[7], [5, 9, 1]], ids=str)
def test_tokens_are_drawn_from_the_probabilities_of_transformers(backbone, settings, lengths, monkeypatch):
    x = backbone.embed_tokens(torch.randint(1, 60, (sum(lengths),)))
    ours = written(backbone, x, lengths, Decoding(max_new_tokens=12, seed=3, **settings), NO_END)
    draw_alike(monkeypatch, 3, [0] * len(lengths))
    want = theirs(backbone, x, lengths, max_new_tokens=12, do_sample=True, **{"top_k": 0, "top_p": 1.0, **settings})
    assert ours == want


@torch.no_grad()
def test_sequences_that_end_change_no_draw_of_those_that_go_on(backbone, monkeypatch):
    x = backbone.embed_tokens(torch.randint(1, 60, (15,)))
    ends = tuple(range(8))
    decoding = Decoding(max_new_tokens=30, temperature=1.0, seed=5)
    ours = written(backbone, x, [5, 9, 1], decoding, StopSequences(ends, ()), prompt_keys=[7, 8, 9])
    draw_alike(monkeypatch, 5, [7, 8, 9])
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": [*ends], "pad_token_id": 0}
    want = theirs(backbone, x, [5, 9, 1], max_new_tokens=30, do_sample=True, **settings)
    assert ours == [row[: next((i for i, t in enumerate(row) if t in ends), 30)] for row in want]
    assert len({len(row) for row in ours}) > 1


def test_draws_come_as_often_as_their_probability_says(backbone):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    keys = [(prompt, sample) for prompt in range(100) for sample in range(200)]
    sample = TokenSampler(SamplingRule.from_settings(backbone, Decoding(temperature=1.0), ()), logits.device)
    nothing = torch.empty(len(keys), 0, dtype=torch.int64)
    drawn = sample(nothing, logits.repeat(len(keys), 1), RandomNumbers(1, keys).draw())
    shares = drawn.bincount(minlength=5) / len(keys)
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=0.015)  # 4 standard errors of 20,000 draws


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")
@pytest.mark.parametrize(
    ("given", "of_checkpoint"), [({"repetition_penalty": 1.7}, 1.0), ({"repetition_penalty": 1.0}, 1.7), ({}, 1.7)]
)
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.4, "top_k": 12, "top_p": 0.9}], ids=["greedy", "drawn"])
def test_penalties_least_lengths_and_warpers_come_in_the_order_of_transformers(
    backbone, given, of_checkpoint, drawn, monkeypatch
):
    x, ends = backbone.embed_tokens(torch.randint(1, 60, (15,))), tuple(range(0, 64, 2))
    backbone.lm.generation_config.repetition_penalty = of_checkpoint
    backbone.lm.generation_config.no_repeat_ngram_size = 2
    decoding = Decoding(max_new_tokens=20, min_new_tokens=6, seed=2, **given, **drawn)
    ours = generate_from_embeddings(backbone, x, [5, 9, 1], decoding, StopSequences(ends, ()))
    settings = {"max_new_tokens": 20, "min_new_tokens": 6, "eos_token_id": [*ends], "do_sample": bool(drawn)}
    for one, prompt in zip(ours, x.split([5, 9, 1]), strict=True):  # padded prompts are penalised less there (5.24)
        draw_alike(monkeypatch, 2, [0])
        (row,) = theirs(backbone, prompt, [len(prompt)], **settings, **given, **drawn)
        assert list(one.ids) == row[: next((i for i, t in enumerate(row) if t in ends), 20)]
    assert min(one.answer_tokens for one in ours) > 6


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")
@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}], ids=str)
def test_what_a_checkpoint_says_against_repetition_holds(backbone, settings):
    x, decoding = backbone.embed_tokens(torch.randint(1, 60, (6,))), Decoding(max_new_tokens=16)
    plain = written(backbone, x, [6], decoding, NO_END)
    for name, value in settings.items():
        setattr(backbone.lm.generation_config, name, value)
    ours = written(backbone, x, [6], decoding, NO_END)
    assert ours == theirs(backbone, x, [6], max_new_tokens=16)
    assert ours != plain


@torch.no_grad()
def test_half_precision_writes_what_transformers_writes_in_it(backbone):
    backbone.bfloat16()
    x = backbone.embed_tokens(torch.randint(1, 60, (14,)))
    ours = written(backbone, x, [5, 9], Decoding(max_new_tokens=4), NO_END)
    want = theirs(backbone, x, [5, 9], max_new_tokens=4)
    assert [row[0] for row in ours] == [row[0] for row in want]  # later ones may fall to a neighbour by rounding
    ids = torch.tensor(want)
    stores = KVCache(2), KVCache(2)
    steps = [DecodingStep(backbone, store, x.device) for store in stores]
    logits = [prefill_prompts(backbone, store, x, [5, 9]) for store in stores]
    for column in ids.T[:-1]:
        logits.append(run_step(steps[0], column))
        stores[0].reserve_slots(16)
    whole = backbone.float()
    rows = [
        torch.cat([part.float(), whole.embed_tokens(row[:-1])]) for part, row in zip(x.split([5, 9]), ids, strict=True)
    ]
    exact = prefill_prompts(whole, KVCache(2), torch.cat(rows), [len(r) for r in rows])
    allowed = 0.05 * exact.abs().max().item()  # bf16 carries three digits through two layers
    torch.testing.assert_close(logits[-1].float(), exact, rtol=0, atol=allowed)


@torch.no_grad()
def test_text_alone_pictures_and_clips_are_answered_as_transformers_answers_them(model):
    batch = prompts(model, ASKED)
    ends = [model.backbone.text_tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ours = ids_of(generate(model, batch, Decoding(max_new_tokens=8)))
    want = theirs(model.backbone, model.embed_tokens(batch), batch.packing.lengths, max_new_tokens=8, eos_token_id=ends)
    assert ours == [row[: row.index(ends[0])] if ends[0] in row else row for row in want]


@torch.no_grad()
def test_a_model_with_adapters_is_answered_as_transformers_answers_it(model):
    batch = prompts(model, ASKED[:2])
    plain = ids_of(generate(model, batch, Decoding(max_new_tokens=8)))
    add_lora(model, Lora(lr=1e-3, rank=4))
    for name, parameter in model.backbone.lm.named_parameters():
        if "lora_B" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours = ids_of(generate(model.eval(), batch, Decoding(max_new_tokens=8)))
    want = theirs(model.backbone, model.embed_tokens(batch), batch.packing.lengths, max_new_tokens=8, eos_token_id=None)
    assert ours == [row[: len(mine)] for row, mine in zip(want, ours, strict=True)]
    assert ours != plain


# What else is in the batch --------------------------------------------------------------------------------------------


def test_a_batch_answers_as_each_conversation_alone(model):
    together = generate(model, prompts(model, ASKED), Decoding(max_new_tokens=8))
    alone = [generate(model, prompts(model, [c]), Decoding(max_new_tokens=8))[0] for c in ASKED]
    assert together == alone


@torch.no_grad()
def test_no_row_of_padding_is_read_and_only_last_rows_meet_the_head(model):
    batch, rows, heads = prompts(model, ASKED), [], []
    layers = model.backbone.lm.get_decoder().layers
    layers[0].register_forward_hook(lambda _, args, out: rows.append(args[0].shape[:2].numel()))
    model.backbone.lm.get_output_embeddings().register_forward_hook(lambda _, args, out: heads.append(len(args[0])))
    generate(model, batch, Decoding(max_new_tokens=3))
    assert rows[0] == batch.num_tokens
    assert rows[1:] == [len(ASKED)] * (len(rows) - 1)
    assert set(heads) == {len(ASKED)}


# Ends -----------------------------------------------------------------------------------------------------------------


def test_an_answer_ends_at_its_stop_token(tiny_model):
    end = tiny_model.backbone.text_tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        tiny_model.backbone.lm.model.norm.weight.mul_(0).add_(1)
        tiny_model.backbone.lm.model.embed_tokens.weight.mul_(0)  # tied: every logit is 0 ...
        tiny_model.backbone.lm.model.embed_tokens.weight[end] = 5  # ... but one
    said = generate(tiny_model, prompts(tiny_model, ASKED[1:2]), Decoding(max_new_tokens=20))[0].ids
    assert end not in said
    assert len(said) < 20


@pytest.mark.parametrize("several", [False, True])
@torch.no_grad()
def test_the_checkpoint_s_own_ends_count_beside_those_of_the_template(tiny_model, several):
    lively(tiny_model.backbone)
    batch = prompts(tiny_model, [ASKED[1]])
    free = generate(tiny_model, batch, Decoding(max_new_tokens=8))[0].ids
    end = free[4]
    tiny_model.backbone.lm.generation_config.eos_token_id = [end, 0] if several else end
    assert generate(tiny_model, batch, Decoding(max_new_tokens=8))[0].ids == free[: free.index(end)]
    im_end = tiny_model.backbone.text_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert StopSequences.from_model(tiny_model).tokens == ((im_end, end, 0) if several else (im_end, end))


def test_a_family_without_a_checkpoint_has_no_ends_of_its_own():
    made = backbones.build({"name": "causal_lm", "family": "llama", **TINY})  # a LlamaConfig says eos_token_id=2
    assert find_end_tokens(made) == ()


def test_a_checkpoint_that_names_a_temperature_and_no_sampling_can_be_saved_again(tmp_path):
    made = backbones.build({"name": "causal_lm", "family": "llama", **TINY})
    made.save_to(tmp_path / "vicuna")
    config = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6, "repetition_penalty": 1.1}
    (tmp_path / "vicuna" / "generation_config.json").write_text(json.dumps(config))
    made.load_from(tmp_path / "vicuna")
    made.save_to(tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert (kept["eos_token_id"], kept["repetition_penalty"], "temperature" in kept) == (2, 1.1, False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0; an answer has at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0; write 0 for greedy"),
        ({"top_p": 0.0}, "top_p=0.0; write a share"),
        ({"top_k": -2}, "top_k=-2; write 0 for all"),
        ({"seed": -1}, "seed=-1; write 0 or more"),
        ({"stop": "###"}, "stop='###' is not tuple"),
        ({"stop": ("a", "")}, "a stop text has at least one character"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1; write 0 or more, up to max_new_tokens=128"),
        ({"min_new_tokens": 129}, "min_new_tokens=129; write 0 or more, up to max_new_tokens=128"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0; write a number above 0"),
        ({"log_probs": 5}, "log_probs=5 is not bool"),
        ({"max_new_tokens": 10**12}, "max_new_tokens=1000000000000; write 1000000 or less"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 is not int"),
        ({"max_new_tokens": True}, "max_new_tokens=True is not int"),
        ({"max_new_tokens": "5"}, "max_new_tokens='5' is not int"),
        ({"max_new_tokens": None}, "max_new_tokens=None is not int"),
        ({"temperature": float("nan")}, "temperature=nan is no number to compute with"),
        ({"temperature": float("inf")}, "temperature=inf is no number to compute with"),
        ({"temperature": 1e308}, "temperature=1e.308; write 0 for greedy, or more, up to 1000"),
        ({"temperature": "warm"}, "temperature='warm' is not float"),
        ({"top_p": float("nan")}, "top_p=nan is no number"),
        ({"top_p": 1.5}, "top_p=1.5; write a share"),
        ({"top_k": 2.5}, "top_k=2.5 is not int"),
        ({"top_k": 10**20}, "top_k=100000000000000000000 is too large"),
        ({"seed": 10**20}, "seed=100000000000000000000 is too large"),
        ({"seed": 1.0}, "seed=1.0 is not int | None"),
        ({"seed": []}, r"seed=\[\] is not int | None"),
    ],
)
def test_decoding_that_cannot_be_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(**setting)


def test_an_answer_longer_than_all_that_the_model_takes_is_refused_before_room_is_made_for_it(tiny_model):
    most = tiny_model.backbone.max_tokens
    batch = prompts(tiny_model, ASKED[1:2])
    with pytest.raises(ConfigError, match=f"max_new_tokens={most + 1}, but the model takes max_tokens={most} in all"):
        generate(tiny_model, batch, Decoding(max_new_tokens=most + 1))


# Randomness and streams -----------------------------------------------------------------------------------------------


def test_sampling_repeats_with_its_seed_and_leaves_the_generator_alone(tiny_model):
    batch = prompts(tiny_model, ASKED[:1])
    before = torch.get_rng_state()
    draws = [
        generate(tiny_model, batch, Decoding(max_new_tokens=12, temperature=2.0, seed=seed)) for seed in (1, 1, 2, 3, 4)
    ]
    assert draws[0] == draws[1]
    assert len({draw[0].ids for draw in draws}) > 1
    assert torch.equal(before, torch.get_rng_state())


class Pieces(TextStreamer):
    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.put_values = []

    def put(self, value):
        self.put_values.append(value.tolist())
        super().put(value)


def test_a_streamer_is_given_what_transformers_gives_it(model, capsys):
    batch, decoding = prompts(model, ASKED[:1]), Decoding(max_new_tokens=5)
    ends = [model.backbone.text_tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ours, own = Pieces(model.backbone.text_tokenizer), Pieces(model.backbone.text_tokenizer)
    generate(model, batch, decoding, streamer=ours)
    printed = capsys.readouterr().out
    with torch.no_grad():
        x = model.embed_tokens(batch)
    theirs(model.backbone, x, batch.packing.lengths, max_new_tokens=5, eos_token_id=ends, streamer=own)
    assert ours.put_values == own.put_values
    assert printed == capsys.readouterr().out


# The store ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_store_that_grows_loses_nothing(backbone):
    x = backbone.embed_tokens(torch.randint(1, 60, (7,)))
    roomy, tight = KVCache(1), KVCache(1)
    roomy.reserve_slots(200)
    logits = {store: prefill_prompts(backbone, store, x, [7]) for store in (roomy, tight)}
    steps = {store: DecodingStep(backbone, store, x.device) for store in logits}
    for _ in range(70):
        tight.reserve_slots(max(tight.lengths) + 1)
        for store, step in steps.items():
            logits[store] = run_step(step, logits[store].argmax(-1))
    assert tight.lengths == roomy.lengths == [77]
    assert tight.capacity < roomy.capacity
    torch.testing.assert_close(logits[tight], logits[roomy], rtol=0, atol=0)


@torch.no_grad()
def test_a_run_that_fails_half_way_leaves_the_store_as_it_was(backbone):
    x, store = backbone.embed_tokens(torch.randint(1, 60, (11,))), KVCache(1)
    prefill_prompts(backbone, store, x[:6], [6])
    hook = backbone.lm.get_decoder().layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prefill_prompts(backbone, store, -x[6:], [5])
    hook.remove()
    assert store.lengths == [6]
    got = prefill_prompts(backbone, store, x[6:], [5])
    torch.testing.assert_close(got, prefill_prompts(backbone, KVCache(1), x, [11]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_store_gives_memory_back_and_forgets_what_does_not_fit(backbone):
    x, store = backbone.embed_tokens(torch.randint(1, 60, (40,))), KVCache(1)
    prefill_prompts(backbone, store, x, [40])
    per_slot = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head_dim, bytes
    assert store.slot_bytes == per_slot
    store.shrink_to_bytes(10 * per_slot + 5)
    assert (store.capacity, store.lengths) == (10, [10])
    got = prefill_prompts(backbone, store, x[10:], [30])
    torch.testing.assert_close(got, prefill_prompts(backbone, KVCache(1), x, [40]), rtol=1e-4, atol=1e-5)


# Captured steps -------------------------------------------------------------------------------------------------------


def test_on_the_cpu_steps_are_run_as_they_are(backbone):
    assert reasons_against_capture(backbone, torch.device("cpu"), 100) == ["tensors are on cpu, and graphs need CUDA"]
    step = acquire_step(backbone, 1, 10, torch.device("cpu"))
    release_step(step)
    assert acquire_step(backbone, 1, 10, torch.device("cpu")) is not step


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("mixtral", {}, "chooses among 4 experts on the host"),
        (
            "llama",
            {"further": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}},
            "depend on the positions' values",
        ),
    ],
)
def test_families_whose_steps_ask_the_host_are_not_captured(name, changed, reason):
    assert any(reason in said for said in reasons_against_capture(family(name, **changed), torch.device("cuda"), 100))


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("qwen3_moe", "mixtral", "gpt_oss")])
def test_a_captured_step_writes_what_it_writes_uncaptured(name):
    backbone, lengths = family(name).cuda(), [5, 9, 1]
    x = backbone.embed_tokens(torch.randint(1, 60, (15,), device="cuda"))
    step = DecodingStep(backbone, KVCache(3), x.device)
    logits = prefill_prompts(backbone, step.store, x, lengths)
    uncaptured = ids_of(decode_answers(step, logits, Decoding(max_new_tokens=20), NO_END))
    captured = [written(backbone, x, lengths, Decoding(max_new_tokens=20), NO_END) for _ in range(2)]
    assert captured == [uncaptured, uncaptured]


@pytest.mark.gpu
@torch.no_grad()
def test_a_captured_step_serves_further_prompts_until_the_weights_lie_elsewhere(backbone):
    backbone, decoding = backbone.cuda(), Decoding(max_new_tokens=20)
    x = backbone.embed_tokens(torch.randint(1, 60, (15,), device="cuda"))
    written(backbone, x, [15], decoding, NO_END)
    step = acquire_step(backbone, 1, 35, x.device)
    prepare_step(step, 20)
    before = step._graph
    prepare_step(step, 20)
    assert step._graph is before
    backbone.lm.get_decoder().layers[0].mlp.up_proj.weight.data = torch.randn(48, 32, device="cuda")
    prepare_step(step, 20)
    assert step._graph is not before


@pytest.mark.gpu
@torch.no_grad()
def test_a_captured_step_sees_weights_that_were_changed_in_their_place(backbone):
    backbone, decoding = backbone.cuda(), Decoding(max_new_tokens=20)
    x = backbone.embed_tokens(torch.randint(1, 60, (15,), device="cuda"))
    written(backbone, x, [15], decoding, NO_END)
    lively(backbone)
    step = DecodingStep(backbone, KVCache(1), x.device)
    want = ids_of(decode_answers(step, prefill_prompts(backbone, step.store, x, [15]), decoding, NO_END))
    assert written(backbone, x, [15], decoding, NO_END) == want
