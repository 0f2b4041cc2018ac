"""Tiny random checkpoints of transformers' LLaVAs, made here, with their processors: 112 pixels, 8x8 cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    GPT2Tokenizer,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.convert.transformers.families import import_hf
from mmblocks.model.generate import Decoding, generate
from mmblocks.model.onevision import OneVision
from tests.hub import LocalHub

SIDE_PX, PATCH_PX = 112, 14
PINPOINTS = [[SIDE_PX * rows, SIDE_PX * columns] for rows in range(1, 7) for columns in range(1, 7)]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
VOCABULARY = 320  # 256 bytes, <|endoftext|>, the four above, and rows that no token uses, as Qwen's tables have


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub of this machine in place of the real one, with an empty cache."""
    local = LocalHub()
    local.serve_this_process(monkeypatch, tmp_path / "cache")
    yield local
    local.close()


def disturbed(model: nn.Module, seed: int = 11) -> Any:
    """Random in every tensor, so that no fresh LayerNorm or zero bias can hide a tensor that was not loaded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=generator))
    return model.eval()


def tokenizer(special: Sequence[str] = SPECIAL) -> Qwen2Tokenizer:
    """Qwen2's tokenizer without merges: every byte is a token."""
    made = Qwen2Tokenizer(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def opt_tokenizer() -> GPT2Tokenizer:
    """OPT's tokenizer without merges: it begins texts with </s>, which ends them too."""
    named = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    return GPT2Tokenizer(
        vocab={c: i for i, c in enumerate(named)},
        merges=[],
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="</s>",
        add_bos_token=True,
    )


def llama_tokenizer(special: Sequence[str] = ()) -> LlamaTokenizer:
    """Llama's tokenizer with a few words: a mark for spaces, one before the first word too, and unknown bytes as tokens."""
    letters = ["\u2581", "\n", *map(chr, range(33, 127))]
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocab, merges = {c: i for i, c in enumerate(named)}, []
    for word in ("\u2581USER", "\u2581ASSISTANT", "\u2581What", "\u2581is", "What", "USER"):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    made = LlamaTokenizer(vocab=vocab, merges=merges)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def processor() -> LlavaOnevisionProcessor:
    pixels: dict[str, Any] = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"height": SIDE_PX, "width": SIDE_PX},
    }
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(**pixels, image_grid_pinpoints=PINPOINTS),
        tokenizer(),
        LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(SIDE_PX // PATCH_PX) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def config(**changes: Any) -> LlavaOnevisionConfig:
    ids = tokenizer().get_vocab()
    text = {"tie_word_embeddings": changes.pop("tied", False)}
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE_PX,
        patch_size=PATCH_PX,
        vision_use_head=False,
    )
    language = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **text,
    )
    settings = {
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "image_grid_pinpoints": PINPOINTS,
        **changes,
    }
    return LlavaOnevisionConfig(vision_config=vision, text_config=language, **settings)


@pytest.fixture(scope="session")
def make_tokenizer() -> Any:
    """Qwen2's tokenizer with other special tokens: `make_tokenizer(["<|im_end|>"])`."""
    return tokenizer


@pytest.fixture(scope="session")
def beginning_tokenizers() -> dict[str, Any]:
    """Tokenizers that begin a text with a BOS, by the family that has them: `beginning_tokenizers["llama"](special)`."""
    return {"opt": opt_tokenizer, "llama": llama_tokenizer}


@pytest.fixture(scope="session")
def pil_processor() -> Any:
    """Reads a folder's processor, whose images are prepared by PIL: `pil_processor(folder)`."""
    return with_pil


@pytest.fixture(scope="session")
def make_theirs() -> Any:
    """transformers' model with random weights: `make_theirs(tied=True, vision_feature_layer=-2)`."""

    def make(**changes: Any) -> Any:
        torch.manual_seed(0)
        return disturbed(LlavaOnevisionForConditionalGeneration(config(**changes)))

    return make


@pytest.fixture(scope="session")
def theirs(make_theirs: Any) -> Any:
    return make_theirs()


@pytest.fixture(scope="session")
def their_processor() -> LlavaOnevisionProcessor:
    return processor()


@pytest.fixture(scope="session")
def checkpoint(theirs: Any, their_processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and its processor on disk, as transformers writes a freshly built model."""
    folder = tmp_path_factory.mktemp("llava_onevision")
    theirs.save_pretrained(folder)
    their_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> OneVision:
    return import_hf(checkpoint)


@pytest.fixture(scope="module")
def exported(ours: OneVision, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(ours, tmp_path_factory.mktemp("export") / "model")


# The other LLaVAs of transformers -----------------------------------------------------------------------------------

CLASSES = {
    "llava": (LlavaConfig, LlavaForConditionalGeneration),
    "llava_next": (LlavaNextConfig, LlavaNextForConditionalGeneration),
    "llava_next_video": (LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration),
}
FIVE = [[SIDE_PX * rows, SIDE_PX * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE_PX,
    "patch_size": PATCH_PX,
}


def llava_config(family: str, vision: str = "clip", **changes: Any) -> Any:
    ids = tokenizer().get_vocab()
    siglip = vision == "siglip"
    settings: dict[str, Any] = {
        "vision_config": SiglipVisionConfig(**TOWER, vision_use_head=False) if siglip else CLIPVisionConfig(**TOWER),
        "text_config": config().text_config,
        "image_token_index": ids["<image>"],
        "vision_feature_select_strategy": "full" if siglip else "default",
    }
    if family != "llava":
        settings["image_grid_pinpoints"] = FIVE
    if family == "llava_next_video":
        settings["video_token_index"] = ids["<video>"]
    return CLASSES[family][0](**{**settings, **changes})


def llava_processor(family: str, made: Any, framing: str = "", words: Any = None) -> Any:
    """As the family's published checkpoints have it, slow (PIL), with patches and CLS of the config."""
    siglip = made.vision_config.model_type == "siglip_vision_model"
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if siglip else {}
    cut = {"size": {"shortest_edge": SIDE_PX}, "crop_size": {"height": SIDE_PX, "width": SIDE_PX}, **means}
    shared = {
        "patch_size": PATCH_PX,
        "vision_feature_select_strategy": made.vision_feature_select_strategy,
        "num_additional_image_tokens": 0 if siglip else 1,
    }
    if family == "llava":
        images = {
            "cropped": lambda: CLIPImageProcessorPil(**cut),
            "padded": lambda: LlavaImageProcessorPil(**cut, do_pad=True),
            "squashed": lambda: SiglipImageProcessorPil(size=cut["crop_size"], resample=3, **means),
        }[framing or ("squashed" if siglip else "cropped")]()
        return LlavaProcessor(images, words or tokenizer(), **shared)
    images = LlavaNextImageProcessorPil(**cut, image_grid_pinpoints=made.image_grid_pinpoints)
    if family == "llava_next":
        return LlavaNextProcessor(images, words or tokenizer(), **shared)
    return LlavaNextVideoProcessor(LlavaNextVideoVideoProcessor(**cut), images, words or tokenizer(), **shared)


def with_pil(folder: Path) -> Any:
    """A folder's processor, with the image processor that prepares images by PIL."""
    found = AutoProcessor.from_pretrained(folder)
    found.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return found


def picture(width: int, height: int) -> Image.Image:
    """A gradient with noise, different for every size."""
    noise = np.random.default_rng(width * 7919 + height).integers(0, 64, (height, width, 3))
    ramp = np.linspace(0, 190, width * height).reshape(height, width, 1)
    return Image.fromarray((noise + ramp).astype(np.uint8))


def prompt(messages: list[dict[str, Any]]) -> str:
    """ChatML's prompt, written out by hand."""
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    for message in messages:
        content = "".join(p["text"] if p["type"] == "text" else f"<{p['type']}>" for p in message["content"])
        text += f"<|im_start|>{message['role']}\n{content}<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


@dataclass
class Rig:
    """A tiny random checkpoint of transformers on disk, its model and processor, and our import of it."""

    theirs: Any
    processor: Any
    folder: Path
    ours: OneVision

    def require_same(self, *parts: Any) -> None:
        """Texts, (width, height) of images and videos (arrays) in their order: the same ids, the same logits at every
        position, the same greedy tokens.
        """
        messages = [{"role": "user", "content": [self._part(part) for part in parts]}]
        batch = collate([Processor.from_model(self.ours).make_prompt_sample(Conversation.from_messages(messages))])
        inputs = self.inputs(messages)
        ids = inputs["input_ids"][0]
        visual = torch.isin(ids, torch.tensor(self._visual_ids()))
        assert batch.visual_positions.tolist() == visual.nonzero().flatten().tolist()
        assert batch.input_ids[~visual].tolist() == ids[~visual].tolist()
        with torch.no_grad():
            ours, theirs = self.ours.compute_logits(batch), self.theirs(**inputs).logits[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # fp32: attention sums in another order
        assert [list(one.ids) for one in generate(self.ours, batch, Decoding(max_new_tokens=8))] == [
            self._answer(inputs)
        ]

    def inputs(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        seen = [part for message in messages for part in message["content"]]
        images = [part["image"] for part in seen if part["type"] == "image"]
        clips = [torch.from_numpy(part["video"]).permute(0, 3, 1, 2) for part in seen if part["type"] == "video"]
        visuals = ({"images": images} if images else {}) | ({"videos": clips} if clips else {})
        return self.processor(text=[prompt(messages)], return_tensors="pt", **visuals)

    @staticmethod
    def _part(part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if isinstance(part, tuple):
            return {"type": "image", "image": picture(*part)}
        return {"type": "video", "video": part}

    def _visual_ids(self) -> list[int]:
        return [getattr(self.theirs.config, f"{kind}_token_id", -1) for kind in ("image", "video")]

    def _answer(self, inputs: dict[str, Any]) -> list[int]:
        stop = self.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        out = self.theirs.generate(**inputs, do_sample=False, max_new_tokens=8, eos_token_id=stop, pad_token_id=stop)
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        return ids[: ids.index(stop)] if stop in ids else ids


@pytest.fixture(scope="session")
def make_rig(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`make_rig("llava", vision="siglip", framing="padded", vision_feature_layer=[1, 3])`."""

    def make(family: str, vision: str = "clip", framing: str = "", words: Any = None, **changes: Any) -> Rig:
        torch.manual_seed(0)
        theirs = disturbed(CLASSES[family][1](llava_config(family, vision, **changes)))
        processor = llava_processor(family, theirs.config, framing, words)
        folder = tmp_path_factory.mktemp(family)
        theirs.save_pretrained(folder)
        processor.save_pretrained(folder)
        return Rig(theirs, processor, folder, import_hf(folder))

    return make


@pytest.fixture(scope="session")
def exported_rig() -> Any:
    """Our export of a rig's model, as transformers loads it: `exported_rig(rig, folder)` is a rig of these two."""

    def export(rig: Rig, folder: Path) -> Rig:
        export_hf(rig.ours, folder, rig.theirs.config.model_type)
        kind: Any = AutoModelForImageTextToText
        theirs, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(report[trouble] for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return Rig(theirs.eval(), with_pil(folder), folder, rig.ours)

    return export
