"""Whatever stands in the settings of somebody else's checkpoint: it is an error of ours that names it, or a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmblocks.components import encoders
from mmblocks.errors import MMBlocksError
from mmblocks.model.convert import detect_layout, layout_of

VIT = {"image_size": 32, "patch_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
RAW = (b"", b"[]", b"null", b'"x"', b"\xff\xfe\x00", b"[" * 100_000)


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def told(folder: Path) -> bool:
    """Whether an import ends well, or with an error of ours that names the folder. Other errors pass through."""
    try:
        layout_of(detect_layout(folder)).import_model(folder, dtype=torch.float32)
    except MMBlocksError as fault:
        return str(folder) in str(fault)
    return True


def test_a_damaged_settings_file_of_a_checkpoint_is_told(copied: Path) -> None:
    for file in sorted(copied.glob("*.json")):
        content = file.read_bytes()
        for raw in (*RAW, content[: len(content) // 2]):
            file.write_bytes(raw)
            assert told(copied), (file.name, raw[:20])
        file.write_bytes(content)


@pytest.mark.parametrize("value", [None, [], -1, "x", 10**12])
def test_a_setting_of_the_wrong_kind_in_a_checkpoint_is_told(copied: Path, value: Any) -> None:
    file = copied / "config.json"
    whole = json.loads(file.read_text())
    for key in whole:
        file.write_text(json.dumps({**whole, key: value}))
        assert told(copied), key


@pytest.mark.parametrize("value", [None, [], -1, "x", 10**12, "../../x"])
def test_a_setting_of_the_wrong_kind_in_the_folder_of_an_encoder_is_told(tmp_path: Path, value: Any) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**VIT, intermediate_size=24)).save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    spec: dict[str, Any] = {"name": "hf_vision", "checkpoint": str(tmp_path), "image_px": 32, "grid": [2, 2]}
    spec |= {"prefix_tokens": 1, "pixel_mean": [0.5] * 3, "pixel_std": [0.5] * 3}
    for key in whole:
        (tmp_path / "config.json").write_text(json.dumps({**whole, key: value}))
        try:
            encoders.build(spec).load_pretrained()
        except MMBlocksError as fault:
            assert "hf_vision" in str(fault) or str(tmp_path) in str(fault)  # noqa: PT017 (it may be whole, too)
