"""Answers are the backbone's own greedy or sampled tokens, whatever else is in the batch."""

import pytest
import torch
from PIL import Image

from mmblocks.chat import Chat, answer, image, video
from mmblocks.conversation import Conversation
from mmblocks.data.collate import collate
from mmblocks.data.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.generate import Decoding, generate

RED = Image.new("RGB", (60, 40), "red")
CLIP = torch.arange(5 * 20 * 30 * 3).remainder(256).to(torch.uint8).view(5, 20, 30, 3).numpy()


def asked(*content):
    return Conversation.of([{"role": "user", "content": [*content]}])


ASKED = [
    asked({"type": "image", "image": RED}, {"type": "text", "text": "What colour is the circle?"}),
    asked({"type": "text", "text": "How many?"}),
    asked({"type": "video", "video": CLIP}, {"type": "text", "text": "What is moving?"}),
    asked({"type": "image", "image": RED}, {"type": "text", "text": "or"}, {"type": "image", "image": RED}),
]


def prompts(model, conversations):
    return collate([Processor.of(model).prompt(c) for c in conversations])


def greedy_without_cache(model, conversation, steps):
    """Greedy decoding written out: the whole sequence again for every new token."""
    batch = prompts(model, [conversation])
    x = model.embed(batch)
    ids = []
    for _ in range(steps):
        positions = torch.arange(len(x))
        hidden = model.backbone.lm.get_decoder()(inputs_embeds=x[None], position_ids=positions[None], use_cache=False)
        ids.append(int(model.backbone.logits(hidden.last_hidden_state[0, -1:]).argmax()))
        x = torch.cat([x, model.backbone.embed(torch.tensor(ids[-1:]))])
    return ids


@pytest.mark.parametrize("conversation", ASKED)
def test_cached_decoding_equals_uncached(tiny_model, conversation):
    with torch.no_grad():
        want = greedy_without_cache(tiny_model, conversation, 6)
    got = generate(tiny_model, prompts(tiny_model, [conversation]), Decoding(max_new_tokens=6))[0]
    assert got == want[: len(got)]
    assert len(got) == 6 or want[len(got)] in tiny_model.backbone.text_tokenizer.encode("<|im_end|>")


def test_a_batch_answers_as_each_conversation_alone(tiny_model):
    together = generate(tiny_model, prompts(tiny_model, ASKED), Decoding(max_new_tokens=8))
    alone = [generate(tiny_model, prompts(tiny_model, [c]), Decoding(max_new_tokens=8))[0] for c in ASKED]
    assert together == alone


def test_sampling_repeats_with_its_seed_and_leaves_the_generator_alone(tiny_model):
    batch = prompts(tiny_model, ASKED[:1])
    before = torch.get_rng_state()
    draws = [
        generate(tiny_model, batch, Decoding(max_new_tokens=12, temperature=2.0, seed=seed)) for seed in (1, 1, 2, 3, 4)
    ]
    assert draws[0] == draws[1]
    assert len({tuple(d[0]) for d in draws}) > 1
    assert torch.equal(before, torch.get_rng_state())


def test_an_answer_ends_at_its_stop_token(tiny_model):
    end = tiny_model.backbone.text_tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        tiny_model.backbone.lm.model.norm.weight.mul_(0).add_(1)
        tiny_model.backbone.lm.model.embed_tokens.weight.mul_(0)  # tied: every logit is 0 ...
        tiny_model.backbone.lm.model.embed_tokens.weight[end] = 5  # ... but one
    said = generate(tiny_model, prompts(tiny_model, ASKED[1:2]), Decoding(max_new_tokens=20))[0]
    assert end not in said
    assert len(said) < 20


def test_a_chat_remembers_pictures_and_answers(tiny_model):
    chat = Chat(tiny_model, decoding=Decoding(max_new_tokens=4))
    first = chat.ask(image(RED), "What is this?")
    chat.ask(video(CLIP), "And this?")
    assert [m.role for m in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert chat.messages[1].text == first
    whole = Conversation(chat.messages[:3])
    assert answer(tiny_model, [whole], Decoding(max_new_tokens=4))[0] == chat.messages[3].text


def test_streamed_pieces_make_the_answer(tiny_model):
    decoding = Decoding(max_new_tokens=9)
    streamed = "".join(Chat(tiny_model, decoding=decoding).stream(image(RED), "What is this?"))
    assert streamed.strip() == Chat(tiny_model, decoding=decoding).ask(image(RED), "What is this?")


def test_a_broken_picture_reaches_the_reader_of_a_stream_as_an_error(tiny_model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"broken\.png"):
        list(Chat(tiny_model).stream(image(tmp_path / "broken.png"), "What is this?"))


def test_saying_nothing_is_an_error(tiny_model):
    with pytest.raises(DataError, match="nothing was said"):
        Chat(tiny_model).ask()
