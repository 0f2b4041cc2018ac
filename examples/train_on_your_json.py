"""Train on a file in LLaVA's JSON format, then ask the model about its images.

    python examples/train_on_your_json.py

Ten records are drawn and written to a temporary folder first; put the path of your own file in their place.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

import mmblocks
from mmblocks import train

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 90, 230),
    "yellow": (240, 210, 40),
    "white": (245, 245, 245),
}
QUESTION = "What colour is the image?"


def main() -> None:
    """Write the data, train for some seconds, ask."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = mmblocks.load(train.run(recipe(write_records(folder), folder / "run")))
        for colour in COLOURS:
            said = mmblocks.Chat(model).ask(mmblocks.image(folder / f"{colour}-0.png"), QUESTION)
            print(f"{colour:>6}: {said}")


def write_records(folder: Path) -> Path:
    """Two images of each colour and one question about each."""
    records = []
    for colour, rgb in COLOURS.items():
        for number, size in enumerate([(96, 64), (64, 64)]):
            picture = f"{colour}-{number}.png"
            Image.new("RGB", size, rgb).save(folder / picture)
            turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": colour}]
            records.append({"id": picture, "image": picture, "conversations": turns})
    path = folder / "train.json"
    path.write_text(json.dumps(records, indent=2), encoding="utf-8")
    return path


def recipe(data: Path, out: Path) -> dict[str, Any]:
    """What `mmblocks train` would compose from a recipe's file: a model, stages, and a folder for the run."""
    rates = {"encoder": 2e-3, "projector": 2e-3, "learned_tokens": 2e-3, "backbone": 2e-3}
    stage = {
        "name": "all",
        "data": [{"name": "llava_json", "path": str(data)}],
        "train": rates,
        "steps": 40,
        "global_batch_size": 10,
    }
    model = {
        "encoder": "tiny_conv",
        "tokenizer": {"image": "square"},
        "backbone": {"name": "qwen2_tiny", "depth": 2},
        "template": "chatml",
    }
    return {"model": model, "stages": [stage], "out": str(out), "device": "cpu", "threads": 1}


if __name__ == "__main__":
    main()
