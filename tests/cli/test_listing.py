"""What `mmblocks list` says of a component is what the component itself has; it is read from files as text."""

import pytest

from mmblocks.cli import main
from mmblocks.cli.listing import format_size, format_summary, list_registries
from mmblocks.components import REGISTRIES, backbones, encoders, poolings, projectors, templates, tokenizers


@pytest.mark.parametrize(
    ("registry", "name", "size"),
    [
        (encoders, "clip_vit_l_336", "336 px, 24 layers x 1024"),  # what it inherits from its constructor's defaults
        (encoders, "clip_vit_b_32", "224 px, 12 layers x 768"),  # and through another preset
        (encoders, "tiny_conv_48", "48 px"),
        (encoders, "eva02_clip_l_336", ""),  # timm knows its size
        (backbones, "qwen2_7b", "28 layers x 3584"),
        (backbones, "qwen2_5_72b", "80 layers x 8192"),
        (backbones, "causal_lm", ""),
        (projectors, "mlp", ""),  # its widths are its neighbours'
    ],
)
def test_sizes_are_those_of_the_settings(registry, name, size):
    assert format_size(registry, name) == size


@pytest.mark.parametrize(
    ("registry", "name", "summary"),
    [
        (encoders, "clip_vit_b_32", "clip, weights of openai/clip-vit-base-patch32"),
        (encoders, "pe_core_l_336", "timm_vit, weights of vit_pe_core_large_patch14_336.fb"),
        (encoders, "clip_dinov2_imof_336", "interleaved with members=(clip_vit_l_336, dinov2_large)"),
        (backbones, "qwen2_7b", "causal_lm, weights of Qwen/Qwen2-7B-Instruct"),
        (tokenizers, "frames_8_plain", "frames with newline='none', max_frames=8"),
        (poolings, "average_3", "average with stride=3"),
        (templates, "v1", "the same as vicuna_v1"),
        (projectors, "identity", "Pass features on unchanged; encoder and LLM must have the same width."),
    ],
)
def test_a_component_is_said_in_a_line(registry, name, summary):
    assert format_summary(registry, name) == summary


@pytest.mark.parametrize("kind", REGISTRIES)
def test_settings_read_as_text_are_those_of_the_imported_component(kind):
    registry = list_registries()[kind]
    own = [name for name in registry if registry.find_info(name).module.startswith("mmblocks.")]
    for name in own:
        root, *presets = registry.find_infos(name)
        assert (root.preset_of, [info.preset_of for info in presets]) == (
            None,
            [info.name for info in (root, *presets)][:-1],
        )
        for info in (root, *presets):
            known = {setting.name: setting.default for setting in registry.list_settings(info.name)}
            read = {key: value for key, value in info.settings.items() if key in known}
            assert {key: known[key] for key in read} == read, info.name
            assert info is root or read == info.settings


def test_no_line_of_the_list_says_that_something_is_a_preset_of_another(capsys):
    assert main(["list"]) == 0
    assert "preset of" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_component_is_said_to_be_something(kind):
    registry = list_registries()[kind]
    assert [name for name in registry if not format_summary(registry, name)] == []


def test_lines_fit_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["list", "encoder"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) == 120
