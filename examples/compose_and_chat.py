"""Compose a model from names, talk to it about images and a video, save it and read it back.

    python examples/compose_and_chat.py

The weights are random here, so what it says means nothing; everything else is as with trained ones.
"""

import tempfile
from pathlib import Path

import mmblocks
from mmblocks.assets import find_media
from mmblocks.conversation import Conversation
from mmblocks.model.build import count_parameters

QUESTION = {"type": "text", "text": "What is in the image?"}


def main() -> None:
    """Build, ask, save, load, ask again."""
    model = mmblocks.build(
        encoder="tiny_conv",
        projector={"name": "mlp", "depth": 3},
        tokenizer={"image": {"name": "anyres_max", "max_tiles": 4}},
        backbone="qwen2_tiny",
        template="chatml",
        seed=0,
    )
    for part in ("encoder", "projector", "learned_tokens", "backbone"):
        print(f"{part:10} {count_parameters(getattr(model, part)):>9,} parameters")

    said = batch_of_answers(model)
    conversation_over_turns(model)
    with tempfile.TemporaryDirectory() as folder:
        again = mmblocks.load(mmblocks.save(model, Path(folder) / "mine"))
        print(f"the model read back says the same: {batch_of_answers(again) == said}")


def batch_of_answers(model: mmblocks.OneVision) -> list[str]:
    """One answer to each of two conversations, written together."""
    pictures = (find_media("image.png"), find_media("first.png"))
    messages = [{"role": "user", "content": [{"type": "image", "image": path}, QUESTION]} for path in pictures]
    return mmblocks.answer(
        model, [Conversation.from_messages([m]) for m in messages], mmblocks.Decoding(max_new_tokens=8)
    )


def conversation_over_turns(model: mmblocks.OneVision) -> None:
    """Images and a video wherever they belong; the chat remembers."""
    chat = mmblocks.Chat(model, decoding=mmblocks.Decoding(max_new_tokens=8))
    chat.ask(
        "Image 1: ", mmblocks.image(find_media("first.png")), "Image 2: ", mmblocks.image(find_media("second.png"))
    )
    for piece in chat.stream(mmblocks.video(find_media("video.mp4")), "And what moves here?"):
        print(piece, end="", flush=True)
    print(f"\n{len(chat.messages)} messages are remembered")


if __name__ == "__main__":
    main()
