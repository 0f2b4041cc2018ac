"""Models of the hub in one call: what `load` and the commands read from a repository answers as transformers does."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mmblocks
from mmblocks.assets import find_media, find_tiny_model
from mmblocks.cli import main
from mmblocks.components import backbones
from mmblocks.errors import CheckpointError, StorageError
from mmblocks.hub import HubReference, fetch_snapshot
from mmblocks.model.loading import locate_model
from mmblocks.pretrained import read_config
from mmblocks.train import run
from mmblocks.train.checks.run import check_run
from tests.hub import LocalHub

QWEN = {"family": "qwen2", "vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "max_tokens": 64}
FAMILIES = ["llava", "llava_next", "llava_next_video"]


def same_weights(one: Any, other: Any) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_repository_answers_as_transformers_does(hub: LocalHub, make_rig: Any, family: str) -> None:
    rig = make_rig(family)
    hub.add(f"org/{family}", rig.folder)
    replace(rig, ours=mmblocks.load(f"org/{family}")).require_same("What is this?", (70, 50))


def test_the_commands_take_a_repository(
    hub: LocalHub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add("org/onevision", checkpoint)
    image = str(find_media("image.png"))
    words = ["--image", image, "--ask", "What is this?", "--max-new-tokens", "4"]
    assert main(["convert", "org/onevision", str(tmp_path / "ours")]) == 0
    assert main(["swap", "org/onevision", "projector=gated", "--out", str(tmp_path / "gated")]) == 0
    assert main(["eval", "org/onevision", "tiny", "--limit", "1"]) == 0
    capsys.readouterr()
    assert main(["plan", "org/onevision", "image=70x50", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(["plan", str(tmp_path / "ours"), "image=70x50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert main(["diff", "org/onevision", str(tmp_path / "gated")]) == 0
    assert "gated" in capsys.readouterr().out
    capsys.readouterr()
    for model in ("org/onevision", f"org/onevision@{commit}", str(checkpoint), str(tmp_path / "ours")):
        assert main(["chat", "--model", model, *words]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert (
        mmblocks.load(tmp_path / "ours").origin == mmblocks.load(tmp_path / "gated").origin == f"org/onevision@{commit}"
    )


def test_a_model_of_ours_that_was_pushed_is_read_and_says_where_it_is_from(hub: LocalHub, tmp_path: Path) -> None:
    folder = mmblocks.save(mmblocks.load(find_tiny_model()), tmp_path / "mine")
    commit = hub.add("org/mine", folder)
    model = mmblocks.load("org/mine")
    assert same_weights(model, mmblocks.load(folder))
    assert model.origin == f"org/mine@{commit}"
    assert mmblocks.load(mmblocks.save(model, tmp_path / "again")).origin == f"org/mine@{commit}"


def test_a_revision_is_another_model(hub: LocalHub, tmp_path: Path) -> None:
    tiny = mmblocks.load(find_tiny_model())
    hub.add("org/mine", mmblocks.save(tiny, tmp_path / "one"))
    torch.nn.init.zeros_(tiny.projector.head.weight)
    hub.add("org/mine", mmblocks.save(tiny, tmp_path / "other"), "v2")
    assert not mmblocks.load("org/mine@v2").projector.head.weight.any()
    assert mmblocks.load("org/mine").projector.head.weight.any()


def test_what_is_in_the_cache_needs_no_hub(hub: LocalHub) -> None:
    hub.add("org/tiny", find_tiny_model())
    first = locate_model("org/tiny")
    hub.close()
    assert locate_model("org/tiny") == first


def test_weights_come_in_one_format_and_nothing_that_is_not_read(hub: LocalHub, tmp_path: Path) -> None:
    names = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "onnx/model.safetensors",
        "training_args.bin",
        "a.py",
    ]
    for name in names:
        (tmp_path / "both" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "both" / name).write_text(name)
    (tmp_path / "pickled").mkdir()
    for name in ("config.json", "pytorch_model.bin", "optimizer.bin"):
        (tmp_path / "pickled" / name).write_text(name)
    hub.add("org/both", tmp_path / "both")
    hub.add("org/pickled", tmp_path / "pickled")

    def fetched(repository: str) -> set[str]:
        folder = fetch_snapshot(HubReference(repository)).folder
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert fetched("org/both") == {"config.json", "model.safetensors"}
    assert fetched("org/pickled") == {"config.json", "pytorch_model.bin"}


def test_a_component_takes_its_weights_from_a_revision(hub: LocalHub, tmp_path: Path) -> None:
    theirs = backbones.build({"name": "causal_lm", **QWEN})
    theirs.save_to(tmp_path / "lm")
    hub.add("org/lm", tmp_path / "lm", "v2")
    ours = backbones.build({"name": "causal_lm", **QWEN, "checkpoint": "org/lm@v2"})
    read_config("org/lm@v2")
    assert not [request for request in hub.requests if request.endswith(".safetensors")]  # settings need no weights
    ours.load_pretrained()
    assert same_weights(ours, theirs)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_a_run_starts_from_a_repository(
    hub: LocalHub, make_rig: Any, checkpoint: Path, tmp_path: Path, family: str
) -> None:
    folder = checkpoint if family == "llava_onevision" else make_rig(family).folder
    hub.add("org/base", folder)
    theirs = mmblocks.load(folder)
    stage = {"name": "all", "data": [{"name": "tinyworld", "task": "single"}], "train": {"projector": 1e-3}}
    recipe = {
        "model": theirs.spec.to_dict(),
        "weights": "org/base",
        "stages": [{**stage, "steps": 2, "global_batch_size": 2}],
        "out": str(tmp_path / "run"),
    }
    assert [(fault.key, fault.severity) for fault in check_run(recipe)] == [("weights", "fetchable")]
    run(recipe)
    assert check_run(recipe) == []  # the hub's cache has it now
    trained, before = mmblocks.load(tmp_path / "run/model").state_dict(), theirs.state_dict()
    assert {name.partition(".")[0] for name in before if not torch.equal(trained[name], before[name])} == {"projector"}


def test_a_run_refuses_a_repository_with_other_parts(hub: LocalHub, checkpoint: Path, tmp_path: Path) -> None:
    hub.add("org/base", checkpoint)
    locate_model("org/base")
    spec = mmblocks.load(checkpoint).spec.to_dict()
    recipe = {
        "model": {**spec, "projector": "gated"},
        "weights": "org/base",
        "out": str(tmp_path / "run"),
        "stages": [],
    }
    assert [fault.key for fault in check_run(recipe) if "projector" in fault.key] == ["model.projector"]


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("org/nothing", r"org/nothing is not on the hub, or is private.*HF_TOKEN"),
        ("org/tiny@v9", r"org/tiny has no revision 'v9'; its branches"),
        ("org/images", r"org/images holds no file of a model .* name a repository in a format of transformers"),
        ("org/gated", r"org/gated is gated: accept its terms at http.*/org/gated, then run `hf auth login`"),
        ("org/other", r"holds a 'bert' model .*cannot be converted. Known: "),
        ("./nowhere", r"there is no folder './nowhere', and it is no repository of the hub"),
        ("one/two/three", r"there is no folder 'one/two/three'"),
        ("org/tiny@", r"there is no folder 'org/tiny@'"),
    ],
)
def test_a_reference_that_names_no_model_says_what_to_do(
    hub: LocalHub, tmp_path: Path, reference: str, says: str
) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert", "architectures": ["Bert"]}')
    hub.add("org/tiny", find_tiny_model())
    hub.add("org/gated", find_tiny_model())
    hub.add("org/other", tmp_path / "bert")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/cat.jpg").write_bytes(b"")
    hub.add("org/images", tmp_path / "images")
    hub.gated.add("org/gated")
    with pytest.raises(CheckpointError, match=says):
        mmblocks.load(reference)


def test_without_hub_and_cache_the_command_to_download_is_named(hub: LocalHub) -> None:
    hub.close()
    with pytest.raises(CheckpointError, match=r"cannot be reached. With a network: hf download org/tiny --revision v1"):
        mmblocks.load("org/tiny@v1")


def test_an_interrupted_download_goes_on(hub: LocalHub) -> None:
    hub.add("org/tiny", find_tiny_model())
    hub.cut.add("backbone/model.safetensors")
    assert same_weights(mmblocks.load("org/tiny"), mmblocks.load(find_tiny_model()))
    assert not hub.cut


@pytest.mark.parametrize("fault", [ConnectionResetError("peer is gone"), RuntimeError("peer closed connection")])
def test_a_download_that_breaks_off_says_that_it_resumes(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def break_off(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr("huggingface_hub.snapshot_download", break_off)
    with pytest.raises(
        CheckpointError, match=r"org/tiny cannot be downloaded: peer .*Run the command again: it resumes"
    ):
        mmblocks.load("org/tiny")


def test_a_shard_that_the_repository_lacks_is_named(hub: LocalHub, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").rename(tmp_path / "cut/model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "cut/model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    hub.add("org/cut", tmp_path / "cut")
    with pytest.raises(CheckpointError, match=r"names files that are missing: model-00002-of-00002\.safetensors"):
        mmblocks.load("org/cut")


def test_a_full_disk_is_said_with_where_the_cache_can_go(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        StorageError, match="the disk is full while org/tiny is downloaded; HF_HOME moves the hub's cache"
    ):
        mmblocks.load("org/tiny")
