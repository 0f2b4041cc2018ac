"""A projector that reads the question: from the conversation to the answer."""

import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

import mmblocks
from mmblocks.chat import Chat, image
from mmblocks.components import projectors
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.instructions import list_questions
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.generate import Decoding, generate

PICTURE = Image.effect_noise((60, 40), 90).convert("RGB")
CLIP = torch.arange(5 * 20 * 30 * 3).remainder(251).to(torch.uint8).view(5, 20, 30, 3).numpy()
SHOWN = {"type": "image", "image": PICTURE}
MOVING = {"type": "video", "video": CLIP}


@pytest.fixture
def model(tiny_spec):
    projector = {"name": "instruct_qformer", **projectors["instruct_qformer"].tiny}
    video = {"name": "frames", "max_frames": 4, "newline": "none"}
    tokenizer = {"image": "pad", "multi_image": "pad", "video": video}
    return mmblocks.build(
        {**tiny_spec, "projector": projector, "pooling": "none", "tokenizer": tokenizer}, seed=0
    ).eval()


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": [*content]}


def assistant(words):
    return {"role": "assistant", "content": words}


def said(question, answer, *visuals):
    return Conversation.from_messages([user(*visuals, text(question)), assistant(answer)])


CONVERSATIONS = [
    said("What colour is the circle?", "red", SHOWN),
    said("How many?", "two"),
    said("Which image shows a square?", "the second image", SHOWN, SHOWN),
    said("What is moving?", "the circle", MOVING),
    said("", "a red circle", SHOWN),
]


def samples_of(model, conversations=CONVERSATIONS):
    return [Processor.from_model(model).make_training_sample(c) for c in conversations]


@torch.no_grad()
def logits_of(model, samples):
    batch = collate(samples)
    return model.compute_logits(batch).split(batch.packing.lengths)


# What is asked --------------------------------------------------------------------------------------------------------


def test_a_visual_is_asked_the_words_of_the_message_that_shows_it():
    talk = [
        {"role": "system", "content": "Be brief."},
        user(text("Compare "), SHOWN, text("\nwith\n"), SHOWN, text("please.")),
        assistant("They are alike."),
        user(text("And now?")),
        assistant("Now too."),
        user(SHOWN, text("What  is this?")),
    ]
    assert list(list_questions(Conversation.from_messages(talk))) == ["Compare with please."] * 2 + ["What is this?"]


def test_what_the_assistant_shows_is_asked_nothing():
    shown = {"role": "assistant", "content": [SHOWN, text("a red circle")]}
    assert list(list_questions(Conversation.from_messages([user(text("Draw a circle.")), shown]))) == [""]


def test_every_view_of_a_visual_carries_its_question(model):
    batch = collate(samples_of(model))
    tokenizer = model.projector.text_tokenizer
    asked = [
        tokenizer.decode(row[real]) for row, real in zip(batch.instructions.ids, batch.instructions.mask, strict=True)
    ]
    assert asked == ["What colour is the circle?", *["Which image shows a square?"] * 2, *["What is moving?"] * 4, ""]
    assert len(batch.instructions.ids) == len(batch.pixels)


def test_a_question_is_cut_to_what_the_projector_takes(model):
    long = said("What colour is the circle? " * 20, "red", SHOWN)
    (row,) = samples_of(model, [long])[0].instructions
    assert len(row) == model.projector.max_text_tokens == 32
    assert model.projector.text_tokenizer.decode(row).endswith("What colour is the circle?")


def test_other_projectors_carry_no_instructions(tiny_model):
    assert collate(samples_of(tiny_model)).instructions is None


def test_the_question_moves_what_is_seen(model):
    one, other = (said(question, "red", SHOWN) for question in ("What colour is it?", "How many?"))
    with torch.no_grad():
        seen, seen_otherwise = (model.compute_visual_tokens(collate(samples_of(model, [c]))) for c in (one, other))
    assert (seen - seen_otherwise).abs().max() > 1e-6


def test_a_batch_without_instructions_is_refused(model):
    batch = replace(collate(samples_of(model)), instructions=None)
    with pytest.raises(DataError, match=r"reads the question, and this batch carries none"):
        model.compute_logits(batch)


# Packing --------------------------------------------------------------------------------------------------------------


def test_a_neighbour_with_other_words_moves_nothing(model):
    first, *others = CONVERSATIONS
    changed = said("What colour is the square?", "blue", SHOWN)

    before = logits_of(model, samples_of(model, [first, *others]))
    after = logits_of(model, samples_of(model, [changed, *others]))

    assert not torch.equal(before[0], after[0])
    for mine, theirs in zip(before[1:], after[1:], strict=True):
        assert torch.equal(mine, theirs)


def test_a_document_is_read_packed_as_alone_however_long_its_neighbours_questions_are(model):
    samples = samples_of(model)
    for packed, sample in zip(logits_of(model, samples), samples, strict=True):
        (alone,) = logits_of(model, [sample])
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-6)  # masked words weigh nothing; sums run otherwise


def test_a_batch_of_text_alone_needs_no_question(model):
    batch = collate(samples_of(model, [CONVERSATIONS[1]]))
    assert batch.instructions.ids.shape == (0, 0)
    assert model(batch).loss.isfinite()


# On its way -----------------------------------------------------------------------------------------------------------


def test_data_workers_can_carry_the_processor_and_its_batches(model):
    processor = pickle.loads(pickle.dumps(Processor.from_model(model)))
    batch = pickle.loads(pickle.dumps(collate([processor.make_training_sample(c) for c in CONVERSATIONS])))
    assert torch.equal(batch.instructions.ids, collate(samples_of(model)).instructions.ids)
    assert batch.to("meta").instructions.mask.is_meta


def test_gradients_reach_the_words(model):
    model.train()(collate(samples_of(model))).loss.backward()
    words = model.projector.body.qformer.embeddings.word_embeddings.weight.grad
    assert words.abs().sum() > 0


@torch.no_grad()
def test_prompts_are_answered_alike_alone_and_together(model):
    prompts = [Processor.from_model(model).make_prompt_sample(Conversation(c.messages[:1])) for c in CONVERSATIONS[:4]]
    greedy = Decoding(max_new_tokens=4)
    together = generate(model, collate(prompts), greedy)
    assert together == [generate(model, collate([p]), greedy)[0] for p in prompts]


def test_a_chat_asks_in_every_turn(model):
    chat = Chat(model, decoding=Decoding(max_new_tokens=3))
    answers = [
        chat.ask(image(PICTURE), "What colour is the circle?"),
        "".join(chat.stream(image(PICTURE), "How many?")),
    ]
    assert [message.text for message in chat.messages[1::2]] == [a.strip() for a in answers]
    assert list(list_questions(Conversation(chat.messages))) == ["What colour is the circle?", "How many?"]


def test_it_comes_back_from_disk_with_its_tokenizer(model, tmp_path):
    mmblocks.save(model, tmp_path / "m")
    back = mmblocks.load(tmp_path / "m").eval()
    mine, theirs = (logits_of(m, samples_of(m)) for m in (model, back))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
