"""The label lint reads what is trained back as text, so it also finds what a wrong template marks."""

from dataclasses import dataclass, replace

import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from mmblocks.components import Span, templates
from mmblocks.conversation import Conversation, Message, PreferencePair, Text, Visual
from mmblocks.data.inspect.lint import Linter, lint_mixture
from mmblocks.data.mixing.mixture import Mixture
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.templates.chatml import ChatML

WORLD = ("text", "caption", "single", "multi", "video")


@pytest.fixture(scope="module")
def processor(tiny_spec):
    return Processor.from_spec(tiny_spec)


@dataclass(frozen=True)
class Talks:
    """A source of conversations that are at hand."""

    talks: tuple

    def __len__(self):
        return len(self.talks)

    def __getitem__(self, index):
        if isinstance(self.talks[index], Exception):
            raise self.talks[index]
        return self.talks[index]


def mixture(*talks):
    return Mixture((Talks(talks),), (1.0,), ("0 talks",))


def talk(*turns, origin="talk"):
    """Texts (or tuples of parts) of user and assistant in alternation."""
    messages = []
    for i, turn in enumerate(turns):
        parts = turn if isinstance(turn, tuple) else (turn,)
        role = ("user", "assistant")[i % 2]
        messages.append(Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts)))
    return Conversation(tuple(messages), origin)


def kinds(processor, *turns, targets="answers"):
    return [finding.kind for finding in Linter(processor, targets).lint_conversation(talk(*turns)).findings]


# Wrong templates, as somebody might write them ----------------------------------------------------------------------


class LearnsQuestions(ChatML):
    """Marks the words of the user too."""

    def to_spans(self, messages):
        return [
            replace(s, learn=isinstance(s.content, str) and "<|" not in s.content) or s
            for s in super().to_spans(messages)
        ]


class LearnsHeaders(ChatML):
    def to_spans(self, messages):
        return [replace(s, learn=s.learn or s.content == "<|im_start|>assistant\n") for s in super().to_spans(messages)]


class LearnsSystem(ChatML):
    def to_spans(self, messages):
        return [replace(s, learn=s.learn or s.content == self.system) for s in super().to_spans(messages)]


class ForgetsTheEnd(ChatML):
    def to_spans(self, messages):
        return [replace(s, learn=s.learn and s.content != "<|im_end|>") for s in super().to_spans(messages)]


class CutsAnswers(ChatML):
    """Keeps five letters of every answer, as a limit of length would."""

    def turn(self, message):
        short = tuple(Text(p.text[:5]) if isinstance(p, Text) else p for p in message.parts)
        return super().format_turn(replace(message, parts=short) if message.role == "assistant" else message)


class LearnsTheFirstAnswerOnly(ChatML):
    def to_spans(self, messages):
        spans = super().to_spans(messages)
        end = next(i for i, s in enumerate(spans) if s.learn and s.content == "<|im_end|>")
        return [*spans[: end + 1], *(replace(s, learn=False) for s in spans[end + 1 :])]


class Thinks(ChatML):
    """Writes an empty thought in front of every answer, which a model must learn to write."""

    def to_spans(self, messages):
        out = []
        for span in super().to_spans(messages):
            out += [span, Span("<think></think>\n", True)] if span.content == "<|im_start|>assistant\n" else [span]
        return out


QUESTION = "How many red circles are there?"


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (ChatML(), []),
        (Thinks(), []),
        (LearnsQuestions(), ["given_trained", "no_end", "given_trained", "no_end"]),
        (LearnsHeaders(), ["given_trained", "given_trained"]),
        (LearnsSystem(system="Be short."), ["given_trained"]),
        (ForgetsTheEnd(), ["no_end", "no_end"]),
        (CutsAnswers(), ["cut", "cut"]),
        (LearnsTheFirstAnswerOnly(), ["cut"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ChatML) else "",
)
def test_what_a_template_marks_wrongly_is_found(processor, template, found):
    wrong = replace(processor, template=template)
    assert kinds(wrong, QUESTION, "there are three", "And blue?", "there are two of them") == found


def test_a_trained_question_is_found_though_it_holds_the_answer(processor):
    wrong = replace(processor, template=LearnsQuestions())
    assert "given_trained" in kinds(wrong, "Is it red or blue?", "red")


SPACED = {"plain", "v0_plain", "tokenizer"}


@pytest.mark.parametrize("name", sorted(set(templates) - SPACED))
def test_templates_of_the_house_have_no_fault(processor, name):
    right = replace(processor, template=templates.build(name))
    told = ["What is  this?\n", " A cat.\n\nIt sleeps. ", "Sure?", "Yes: 猫 é", "Sure?", "Sure?"]
    assert kinds(right, *told) == []


def test_a_caption_ends_with_its_newline(processor):
    picture = Visual("image", Image.new("RGB", (20, 20)))
    plain = templates.build("plain")
    assert kinds(replace(processor, template=plain), (picture, "What?"), "a cat\non a mat") == []

    class Endless(type(plain)):
        def to_spans(self, messages):
            return super().to_spans(messages)[:-1]

    assert kinds(replace(processor, template=Endless()), (picture, "What?"), "a cat\non a mat") == ["no_end"]


@pytest.mark.parametrize("task", WORLD)
def test_made_up_records_have_no_fault(processor, task):
    source = Mixture.from_entries([{"name": "tinyworld", "task": task, "turns": 2}])
    report = lint_mixture(source, processor, samples_per_source=20)
    assert report.counts == {}
    assert report.sources[0].num_checked == 20
    report.require_no_faults()


def test_the_originals_own_masks_are_no_fault(processor):
    assert kinds(processor, QUESTION, "three", targets="original") == []


@pytest.mark.parametrize("name", ["chatml", "vicuna_v1", "llama_2", "llava_llama_3"])
def test_an_answer_that_is_not_learned_is_no_fault_and_is_not_trained(processor, name):
    one = talk("first ?", "one two", "second ?", "three four")
    given, *rest = [m if i != 1 else replace(m, learn=False) for i, m in enumerate(one.messages)]
    looked = Linter(replace(processor, template=templates.build(name))).lint_conversation(
        replace(one, messages=(given, *rest))
    )
    assert looked.findings == ()
    ids = looked.encoded.targets[looked.encoded.targets >= 0].tolist()
    assert processor.text_tokenizer.decode(ids).strip().startswith("three four")


# Samples ------------------------------------------------------------------------------------------------------------


def test_a_long_sample_is_told_with_its_length_and_is_no_cut_answer(processor):
    (finding,) = (
        Linter(replace(processor, max_tokens=12)).lint_conversation(talk("one two three", "four five six")).findings
    )
    assert finding.kind == "too_long"
    assert "(0 of them visual), the limit is 12" in finding.detail


def test_visual_tokens_that_a_tokenizer_counts_otherwise_are_found(processor):
    class Miscounts(type(processor.router.image)):
        def count_tokens(self, plan):
            return plan.num_tokens + 1

    image = processor.router.image
    fields = {name: getattr(image, name) for name in ("view_px", "grid", "spatial", "pinpoints", "max_tiles")}
    wrong = replace(processor, router=replace(processor.router, image=Miscounts(**fields)))
    picture = Visual("image", Image.new("RGB", (30, 20)))
    assert kinds(processor, (picture, "What?"), "cat") == []
    assert kinds(wrong, (picture, "What?"), "cat") == ["visuals"]


def test_a_report_counts_by_kind_and_names_the_first_of_each(processor):
    shown = (Visual("image", "nowhere.png"), "What?")
    talks = [
        talk("Hi", "hello", origin="a:0"),
        talk("Hi", origin="a:1"),
        talk(shown, "cat", origin="a:2"),
        DataError("a:record 3: not JSON"),
        talk("Hi", "hello " * 50, origin="a:4"),
    ]
    report = lint_mixture(mixture(*talks), replace(processor, max_tokens=40))
    assert report.counts == {"broken": 2, "nothing_trained": 1, "too_long": 1}
    said = str(report)
    assert said.startswith("0 talks: 4 faulty of 5 looked at (5 records)\n")
    assert "  1 x no trained token\n    a:1: none of its" in said
    assert "a:2: nowhere.png: there is no such file" in said
    assert "a:record 3: not JSON" in said
    with pytest.raises(DataError, match=r"(?s)would not train what they should.*1 x longer than the limit.*a:4"):
        report.require_no_faults()


def test_what_is_left_out_anyway_is_passed_over_unless_nothing_is_left(processor):
    good, bad = talk("Hi", "hello"), talk("Hi")
    lint_mixture(mixture(good, bad), processor).require_no_faults(skip_broken=True)
    with pytest.raises(DataError, match="no trained token"):
        lint_mixture(mixture(bad, bad), processor).require_no_faults(skip_broken=True)
    forgetful = replace(processor, template=ForgetsTheEnd())
    with pytest.raises(DataError, match="the end of a turn is not trained"):
        lint_mixture(mixture(good, bad), forgetful).require_no_faults(skip_broken=True)


def test_text_that_looks_like_control_is_told_with_its_place_and_refuses_nothing(processor):
    report = lint_mixture(
        mixture(talk("Which?", "A cat.<|im_end|>"), talk("<|im_start|>user", "Yes."), talk("#", "1")), processor
    )
    (source,) = report.sources
    assert report.counts == {"control": 2}
    assert [finding.detail for findings in source.faulty for finding in findings] == [
        "message 1 (assistant) holds '<|im_end|>', read as plain text",
        "message 0 (user) holds '<|im_start|>', read as plain text",
    ]
    report.require_no_faults()


@pytest.mark.parametrize(("template", "text"), [("llava_v0", "###"), ("llava_v0", "Assistant:")])
def test_a_turn_that_a_template_writes_in_plain_text_is_told_too(template, text, tiny_spec):
    looked = Linter(Processor.from_spec({**tiny_spec, "template": template})).lint_conversation(
        talk("Which?", f"{text} A cat.")
    )
    (finding,) = looked.findings
    assert finding.detail == f"message 1 (assistant) holds {text!r}, read as the template's"


def test_both_answers_of_a_pair_are_looked_at(processor):
    report = lint_mixture(mixture(PreferencePair(talk("Hi", "hello"), talk("Hi"))), processor)
    assert (report.sources[0].num_checked, report.counts) == (2, {"nothing_trained": 1})


def test_few_records_of_a_large_source_are_drawn_the_same_every_time(processor):
    talks = mixture(*(talk("Hi", origin=str(i)) for i in range(50)))
    once, again = (lint_mixture(talks, processor, samples_per_source=7) for _ in range(2))
    assert once == again
    assert once.sources[0].num_checked == 7
    assert lint_mixture(talks, processor, samples_per_source=None).sources[0].num_checked == 50


# Text tokenizers ----------------------------------------------------------------------------------------------------


def spaced_words(*specials):
    """A text tokenizer like Llama's: spaces are letters, one is put in front, unknown letters are bytes."""
    letters = [chr(n) for n in range(33, 127)]
    vocab = {token: i for i, token in enumerate(["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *letters])}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>", *specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_llama_2", "chatml", "llava_v0"])
def test_spaces_that_a_text_tokenizer_adds_are_no_fault(processor, name):
    tokenizer = spaced_words("<|im_start|>", "<|im_end|>")
    right = replace(processor, template=templates.build(name), text_tokenizer=tokenizer)
    told = ["What is this?", "A cat: 猫.\nIt sleeps.", "Sure?", " Yes. "]
    assert kinds(right, *told) == []
    if name == "chatml":
        assert kinds(replace(right, template=ForgetsTheEnd()), *told) == ["no_end", "no_end"]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_what_a_models_own_chat_writes_before_an_answer_is_no_fault(processor):
    tokenizer = spaced_words("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = THINKING
    own = templates.build("tokenizer", text_tokenizer=lambda: tokenizer)
    thinks = replace(processor, template=own, text_tokenizer=tokenizer)
    told = talk("Which?", "this one")
    (looked,) = [Linter(thinks).lint_conversation(told)]
    assert looked.findings == ()
    trained = looked.encoded.targets[looked.encoded.targets >= 0].tolist()
    assert "<think>" in tokenizer.decode(trained)


def test_an_answer_needs_the_tokenizers_own_end_where_a_template_names_none(processor):
    class Endless(ForgetsTheEnd):
        stop = ()

    tokenizer = spaced_words("<|im_start|>", "<|im_end|>")
    without = replace(processor, template=Endless(), text_tokenizer=tokenizer)
    (finding,) = Linter(without).lint_conversation(talk("Which?", "this one")).findings
    assert (finding.kind, finding.detail) == ("no_end", "answer 1 is trained without '</s>' after it")
