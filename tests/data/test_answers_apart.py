"""Each answer is learned behind exactly the prompt that it will meet, also where a template rewrites earlier answers."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mmblocks
from mmblocks import train
from mmblocks.batch import IGNORE
from mmblocks.components import templates
from mmblocks.conversation import Conversation, Message, PreferencePair
from mmblocks.data.inspect.lint import Linter
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor

TURN = "<|im_start|>{{ m.role }}\n"
KEPT = "{% for m in messages %}" + TURN + "{{ m.content }}<|im_end|>\n{% endfor %}"
DROPPED = (  # a thought stands in front of answers to the last question only, as Qwen3 writes it
    "{% set last = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.asked = loop.index %}{% endif %}{% endfor %}"
    "{% for m in messages %}" + TURN + "{% if m.role == 'assistant' and loop.index > last.asked %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)
OPENED = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if hurried %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TEMPLATES = {
    "keeps": KEPT + OPENED,
    "rewrites": DROPPED + OPENED,
    "is hurried": DROPPED + OPENED,
    "has another header": KEPT + OPENED.replace("assistant\n", "assistant|"),
    "opens with a space": (KEPT + OPENED).replace("}}\n", "}}: ").replace("assistant\n", "assistant: "),
}
TALKS = [
    ["Hi", "Ho"],
    ["Which?", "A cat.", "Colour?", "White.", "Sure?", "Yes."],
    ["Which?", "A cat.", "Colour?", "White.", "Sure?"],
]


def tokenizer_with(jinja):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = [("\u0120", letter) for letter in "AHWY"]  # a space and the letter behind it
    vocab = {token: i for i, token in enumerate([*letters, *map("".join, joined)])}
    backend = Tokenizer(models.BPE(vocab, joined))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens(["<think>", "</think>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = jinja
    return tokenizer


@pytest.fixture(scope="module", params=TEMPLATES)
def arguments(request):
    return {"hurried": True} if request.param == "is hurried" else {}, tokenizer_with(TEMPLATES[request.param])


@pytest.fixture
def processor(arguments, built_tiny_model):
    given, tokenizer = arguments
    template = templates.build({"name": "tokenizer", "arguments": given}, text_tokenizer=lambda: tokenizer)
    return replace(Processor.from_model(built_tiny_model, template=template), text_tokenizer=tokenizer)


def said(talk):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(talk)]


def rendered(arguments, messages, opened):
    """What transformers' apply_chat_template writes."""
    given, tokenizer = arguments
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened, **given)


def ids_of(arguments, text):
    return arguments[1](text, add_special_tokens=False)["input_ids"]


def answers(sample):
    """(the rows in front of what is learned, what is learned) for each learned run of a sample."""
    ids, targets = sample.input_ids.tolist(), [IGNORE, *sample.targets.tolist()[:-1]]
    starts = [i for i, t in enumerate(targets) if t != IGNORE and targets[i - 1] == IGNORE]
    ends = [next((j for j in range(i, len(ids)) if targets[j] == IGNORE), len(ids)) for i in starts]
    return [(ids[:start], ids[start:end]) for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("talk", TALKS)
def test_every_answer_stands_behind_the_prompt_for_it_and_reads_as_the_last_one(talk, arguments, processor):
    learned = [
        one for sample in processor.encode_item(Conversation.from_messages(said(talk))) for one in answers(sample)
    ]
    expected = []
    for i in range(1, len(talk), 2):
        prompt, whole = (rendered(arguments, said(talk)[:n], opened) for n, opened in ((i, True), (i + 1, False)))
        answer = whole.removeprefix(prompt).removesuffix("\n")  # the newline behind <|im_end|> is not learned
        if not whole.startswith(prompt):
            answer = f"{talk[i]}<|im_end|>"
        expected.append((ids_of(arguments, prompt), ids_of(arguments, answer)))
    assert learned == expected


@pytest.mark.parametrize("talk", TALKS)
def test_a_prompt_is_what_transformers_makes_of_it(talk, arguments, processor):
    for i in range(0, len(talk), 2):
        prompt = processor.make_prompt_sample(
            Conversation.from_messages(said(talk)[: i + 1])
        ).encoded.input_ids.tolist()
        assert prompt == ids_of(arguments, rendered(arguments, said(talk)[: i + 1], True))


def test_a_conversation_is_one_sample_unless_answers_are_rewritten(processor):
    samples = processor.encode_item(Conversation.from_messages(said(TALKS[1])))
    assert len(samples) == (3 if processor.template.rewrites_answers else 1)


def test_answers_that_are_not_learned_give_no_samples(processor):
    first, *rest = Conversation.from_messages(said(TALKS[1])).messages
    talk = Conversation((first, *(Message(m.role, m.parts, learn=i == 0) for i, m in enumerate(rest))))
    (sample,) = processor.encode_item(talk)
    assert len(answers(sample)) == 1


def test_of_a_pair_the_last_answers_are_compared(processor):
    chosen, rejected = (Conversation.from_messages(said([*TALKS[1][:3], last])) for last in ("White.", "Blue."))
    better, worse = processor.encode_item(PreferencePair(chosen, rejected))
    assert answers(better)[-1][0] == answers(worse)[-1][0]
    assert answers(better)[-1][1] != answers(worse)[-1][1]


def test_the_label_lint_finds_nothing_wrong_with_them(processor):
    linter = Linter(processor)
    looked = [
        linter.lint_conversation(one)
        for one in processor.list_conversations(Conversation.from_messages(said(TALKS[1])))
    ]
    assert [finding for one in looked for finding in one.findings] == []


def test_a_stage_learns_every_answer_of_such_a_template(tmp_path):
    text_tokenizer = tokenizer_with(TEMPLATES["rewrites"])
    text_tokenizer.save_pretrained(tmp_path / "words")
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(TALKS[1])]
    (tmp_path / "talk.json").write_text(json.dumps([{"id": 0, "conversations": turns}]))
    sizes = {"vocab_size": 300, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 48, "max_tokens": 512}
    backbone = {"name": "causal_lm", "family": "qwen2", "text_tokenizer": str(tmp_path / "words"), **sizes}
    model = {"encoder": "tiny_conv", "projector": "mlp", "backbone": backbone, "template": "tokenizer"}
    data = [{"name": "llava_json", "path": str(tmp_path / "talk.json")}]
    stage = {"name": "all", "data": data, "train": {"backbone": 1e-3}, "steps": 2, "global_batch_size": 1}
    train.run({"model": model, "stages": [stage], "out": str(tmp_path / "run"), "threads": 1, "log_every": 1})
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    built = mmblocks.build(model, seed=0)
    batch = collate(Processor.from_model(built).make_training_samples(Conversation.from_messages(said(TALKS[1]))))
    assert len(batch.packing.lengths) == 3
    assert first["loss"] == pytest.approx(built(batch).loss.item(), abs=1e-5)
