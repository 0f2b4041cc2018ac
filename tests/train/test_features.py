"""Kept features: what is read back is what the encoder gave, and nothing else is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import mmblocks
from mmblocks.conversation import Conversation, Visual
from mmblocks.data.media.files import FileSlice
from mmblocks.data.mixing.mixture import Mixture
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError, DataError
from mmblocks.image_reading import ImageReading
from mmblocks.model.trainable import train_only
from mmblocks.train import features as module
from mmblocks.train.checks.run import check_run
from mmblocks.train.features import (
    CacheEstimate,
    FeatureCache,
    estimate_cache,
    fill_cache,
    filling,
    prepare_feature_cache,
    store,
)
from mmblocks.train.features.store import identify_visual, write_features_file
from mmblocks.train.optim import make_optimizer
from mmblocks.train.stages import Stage

WORLD = [{"name": "tinyworld", "task": "single", "size": 6}, {"name": "tinyworld", "task": "video", "size": 3}]
_VIT = {"patch_px": 14, "depth": 3, "heads": 2, "mlp_dim": 24}
MEMBERS = [{"name": "clip", "image_px": 28, "dim": 8, **_VIT}, {"name": "siglip", "image_px": 28, "dim": 16, **_VIT}]


@pytest.fixture
def mixture():
    return Mixture.from_entries(WORLD)


def stage(**given):
    return Stage(
        **{"name": "align", "data": WORLD, "train": {"projector": 1e-3}, "epochs": 2, "global_batch_size": 3, **given}
    )


def kept(root, model, mixture, precision="float32", **given):
    return prepare_feature_cache(
        root, model, stage(precision=precision), mixture, mixture.draw_all(), Processor.from_model(model), **given
    )


def batches(processor, mixture, draws, size=3):
    for begin in range(0, len(draws), size):
        drawn = [mixture[draws[n]] for n in range(begin, min(begin + size, len(draws)))]
        yield collate([sample for item in drawn for sample in processor.make_training_samples(item)])


def losses(model, processor, mixture):
    """Two passes over the mixture, the projector learning."""
    train_only(model, ["projector"])
    optimizer = make_optimizer(model, stage())
    found = []
    for seed in range(2):
        for batch in batches(processor, mixture, mixture.draw_epochs(1, (seed,))):
            loss = model(batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


@pytest.mark.parametrize(
    "encoder",
    [
        None,
        {"name": "fused", "members": MEMBERS, "squash": True},
        {"name": "interleaved", "members": MEMBERS, "squash": True},
    ],
    ids=["one", "fused", "interleaved"],
)
def test_losses_are_equal_with_and_without_to_the_bit(tiny_spec, tmp_path, mixture, encoder, monkeypatch):
    """Views are encoded one by one here: how many are multiplied together decides over the last bits of the features."""
    spec = tiny_spec if encoder is None else {**tiny_spec, "encoder": encoder}
    if encoder is not None and encoder["name"] == "interleaved":  # a row of tokens, no image
        plain = {"image": "pad", "multi_image": "pad", "video": {"name": "frames_as_images", "max_frames": 4}}
        spec = {**spec, "tokenizer": plain, "pooling": "none"}
    one, other = (mmblocks.build(spec, seed=0).eval() for _ in range(2))
    monkeypatch.setattr(filling, "VIEWS_PER_BATCH", 1)
    cache = kept(tmp_path, one, mixture)
    cached = losses(one, replace(Processor.from_model(one), features=cache), mixture)
    encode = other.encode_pixels
    monkeypatch.setattr(other, "encode_pixels", lambda pixels: torch.cat([encode(view) for view in pixels.split(1)]))
    assert cached == losses(other, Processor.from_model(other), mixture)
    assert len(set(cached)) == len(cached)


def test_a_second_pass_reads_no_pixel_and_runs_no_encoder(tiny_model, tmp_path, mixture, monkeypatch):
    cache = kept(tmp_path, tiny_model, mixture)
    decoded, seen = [], []
    monkeypatch.setattr(
        "mmblocks.data.sample.processor.render_visual_plan", lambda *given, **named: decoded.append(given)
    )
    tiny_model.encoder.register_forward_hook(lambda *given: seen.append(given))
    processor = replace(Processor.from_model(tiny_model), features=cache)
    for batch in batches(processor, mixture, mixture.draw_all()):
        tiny_model(batch)
        assert len(batch.pixels) == 0
        assert batch.num_views == sum(len(routed.plan.views) for routed in batch.plans) > 0
    assert fill_cache(cache, tiny_model, "float32", mixture, mixture.draw_all(), Processor.from_model(tiny_model)) == 0
    assert (decoded, seen) == ([], [])


def test_every_view_is_encoded_once_however_often_it_is_drawn(tiny_model, tmp_path, mixture):
    cache = FeatureCache.from_model(tmp_path, tiny_model)
    processor = Processor.from_model(tiny_model)
    views = sum(batch.num_views for batch in batches(processor, mixture, mixture.draw_all()))
    often = mixture.draw_by_weight(200, (0,))
    assert fill_cache(cache, tiny_model, "float32", mixture, often, processor) == views
    assert fill_cache(cache, tiny_model, "float32", mixture, often, processor) == 0


def test_worker_processes_fill_the_same_cache(tiny_model, tmp_path, mixture):
    one = kept(tmp_path / "one", tiny_model, mixture)
    two = kept(tmp_path / "two", tiny_model, mixture, workers=1)
    files = sorted(p.relative_to(one.folder) for p in one.folder.rglob("*.safetensors"))
    assert files == sorted(p.relative_to(two.folder) for p in two.folder.rglob("*.safetensors"))
    assert all((one.folder / f).read_bytes() == (two.folder / f).read_bytes() for f in files)


def test_another_encoder_has_another_cache(tiny_model, tiny_spec, tmp_path):
    same = FeatureCache.from_model(tmp_path, mmblocks.build(tiny_spec, seed=0))
    assert same == FeatureCache.from_model(tmp_path, tiny_model)
    folders = {
        same.folder,
        FeatureCache.from_model(tmp_path, mmblocks.build(tiny_spec, seed=1)).folder,
        FeatureCache.from_model(tmp_path, tiny_model, "bfloat16").folder,
        FeatureCache.from_model(
            tmp_path, mmblocks.build({**tiny_spec, "encoder": {**tiny_spec["encoder"], "heads": 4}}, seed=0)
        ).folder,
    }
    assert len(folders) == 4
    with torch.no_grad():
        next(tiny_model.encoder.parameters()).view(-1)[0] += 1e-6
    assert FeatureCache.from_model(tmp_path, tiny_model).folder not in folders


def test_another_backbone_or_projector_shares_the_cache(tiny_model, tiny_spec, tmp_path):
    other = mmblocks.build({**tiny_spec, "projector": "linear"}, seed=5)
    other.encoder.load_state_dict(tiny_model.encoder.state_dict())
    assert FeatureCache.from_model(tmp_path, other) == FeatureCache.from_model(tmp_path, tiny_model)


def test_features_keep_the_type_they_were_computed_in(tiny_model, tmp_path, mixture):
    cache = kept(tmp_path, tiny_model, mixture, precision="bfloat16")
    processor = Processor.from_model(tiny_model)
    batch = next(batches(processor, mixture, mixture.draw_all()))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        want = tiny_model.encode_batch(batch)
    got = next(batches(replace(processor, features=cache), mixture, mixture.draw_all())).features
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


def test_text_alone_has_features_of_no_view(tiny_model, tmp_path, mixture):
    cache = kept(tmp_path, tiny_model, mixture)
    talk = Conversation.from_messages([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "red"}])
    batch = collate([replace(Processor.from_model(tiny_model), features=cache).make_training_sample(talk)])
    assert batch.features.shape == (0, *cache.grid)
    tiny_model(batch).total.backward()
    blank = batch.with_blank_view(tiny_model.encoder.view_px)
    assert blank.features.shape == (1, *cache.grid)
    assert torch.equal(tiny_model(blank).total, tiny_model(batch).total)


# Which image it is -------------------------------------------------------------------------------------------------


def test_a_picture_that_changes_on_disk_is_another_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    before = identify_visual(Visual("image", str(path)))
    assert identify_visual(Visual("image", path)) == before
    Image.new("RGB", (8, 8), "blue").save(path)
    assert identify_visual(Visual("image", str(path))) != before


def test_pictures_in_memory_are_what_they_show():
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    assert identify_visual(Visual("image", red)) == identify_visual(Visual("image", red.copy()))
    assert identify_visual(Visual("image", red)) != identify_visual(Visual("image", blue))
    assert identify_visual(Visual("image", Image.new("RGB", (2, 8), "red"))) != identify_visual(Visual("image", red))
    clip = np.zeros((2, 4, 4, 3), np.uint8)
    assert identify_visual(Visual("video", clip)) != identify_visual(Visual("video", clip + 1))
    assert identify_visual(Visual("image", b"one")) != identify_visual(Visual("image", b"two"))


def test_a_folder_of_frames_is_its_files(tmp_path):
    for n in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{n}.png")
    before = identify_visual(Visual("video", str(tmp_path)))
    Image.new("RGB", (4, 4)).save(tmp_path / "2.png")
    assert identify_visual(Visual("video", str(tmp_path))) != before


def test_another_plan_of_a_picture_has_features_of_its_own(tiny_model, tmp_path, mixture):
    cache = FeatureCache.from_model(tmp_path, tiny_model)
    (visual,) = mixture[mixture.draw_all()[0]].visuals
    (routed,) = Processor.from_model(tiny_model).plan(mixture[mixture.draw_all()[0]])
    fewer = replace(routed.plan, views=routed.plan.views[:1])
    assert cache.to_path(visual, fewer) != cache.to_path(visual, routed.plan)


# What goes wrong -----------------------------------------------------------------------------------------------------


def one_file(cache):
    return next(cache.folder.rglob("*.safetensors"))


def read_all(model, cache, mixture):
    return list(batches(replace(Processor.from_model(model), features=cache), mixture, mixture.draw_all()))


def test_a_file_that_was_cut_is_found_and_made_again(tiny_model, tmp_path, mixture):
    cache = kept(tmp_path, tiny_model, mixture)
    path = one_file(cache)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(DataError, match=r"tinyworld.*is truncated or damaged.*delete it and start the run again"):
        read_all(tiny_model, cache, mixture)
    kept(tmp_path, tiny_model, mixture)
    assert path.read_bytes() == whole


def test_a_changed_bit_is_found(tiny_model, tmp_path, mixture):
    cache = kept(tmp_path, tiny_model, mixture)
    path = one_file(cache)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"is damaged, its checksum differs"):
        read_all(tiny_model, cache, mixture)


def test_a_write_that_is_stopped_leaves_no_file(tiny_model, tmp_path, mixture, monkeypatch):
    cache = FeatureCache.from_model(tmp_path, tiny_model)

    def stops(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", stops)
        with pytest.raises(KeyboardInterrupt):
            fill_cache(cache, tiny_model, "float32", mixture, mixture.draw_all(), Processor.from_model(tiny_model))
    assert not [p for p in cache.folder.rglob("*.safetensors") if not p.name.startswith(".")]
    fill_cache(cache, tiny_model, "float32", mixture, mixture.draw_all(), Processor.from_model(tiny_model))
    read_all(tiny_model, cache, mixture)


def test_features_that_were_never_kept_are_an_error_that_names_the_record(tiny_model, tmp_path, mixture):
    with pytest.raises(DataError, match=r"tinyworld train single 0: .*the cache holds no features of it"):
        read_all(tiny_model, FeatureCache.from_model(tmp_path, tiny_model), mixture)


def test_a_broken_picture_stops_the_filling_or_is_left_out(tiny_model, tmp_path, caplog):
    (tmp_path / "bad.png").write_bytes(b"no image")
    said = [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "bad.png")}]}]
    bad = Conversation.from_messages([*said, {"role": "assistant", "content": "red"}], "data.json:3")
    good = Mixture.from_entries(WORLD[:1]).sources[0]
    mixture = Mixture(([bad], good), (1.0, 1.0), ("0 bad", "1 good"))
    with pytest.raises(DataError, match=r"data.json:3.*bad.png"):
        kept(tmp_path, tiny_model, mixture)
    with caplog.at_level("WARNING"):
        kept(tmp_path, tiny_model, mixture, broken="skip")
    assert "left out of the feature cache: data.json:3" in caplog.text


def test_an_encoder_that_learns_is_refused(tiny_model, tiny_spec, tmp_path, mixture):
    learns = stage(train={"encoder": 1e-5, "projector": 1e-3})
    with pytest.raises(ConfigError, match=r"stage 'align': it trains the encoder, whose features change"):
        prepare_feature_cache(
            tmp_path, tiny_model, learns, mixture, mixture.draw_all(), Processor.from_model(tiny_model)
        )
    raw = {"name": "all", "data": WORLD, "train": {"encoder": 1e-3}, "steps": 1, "global_batch_size": 1}
    recipe = {"model": tiny_spec, "out": "runs/x", "stages": [raw]}
    assert check_run(recipe) == []
    (fault,) = map(str, check_run({**recipe, "cache_features": str(tmp_path)}))
    assert fault.startswith("cache_features")
    assert "stages.0 ('all'): it trains the encoder" in fault


# Whether it pays -----------------------------------------------------------------------------------------------------


def test_a_cache_pays_from_the_pass_on_in_which_it_has_saved_what_it_cost():
    def passes(times):
        return CacheEstimate(
            100.0 * times, 100.0, encode_s=0.1, write_s=0.02, read_s=0.02, disk_bytes=1e6, free_bytes=1e9
        )

    assert passes(1).break_even == pytest.approx(1.5)
    assert [passes(times).is_worthwhile for times in (1.0, 1.4, 1.6, 3.0)] == [False, False, True, True]
    assert passes(3).savings_s == pytest.approx(100 * (3 * 0.08 - 0.12))
    assert "not worth it for this stage alone" in str(passes(1))
    assert "read 1.5 times or more" in str(passes(1))
    assert "saves about 12 s" in str(passes(3))
    assert replace(passes(1), missing=0.0).is_worthwhile


def test_an_estimate_counts_views_and_bytes(tiny_model, tmp_path, mixture):
    cache, processor = FeatureCache.from_model(tmp_path, tiny_model), Processor.from_model(tiny_model)
    views = sum(batch.num_views for batch in batches(processor, mixture, mixture.draw_all()))
    found = estimate_cache(cache, tiny_model, "float32", mixture, mixture.draw_epochs(3, (0,)), processor)
    assert found.views == pytest.approx(3 * views)
    assert found.missing == pytest.approx(views)
    assert found.disk_bytes == pytest.approx(views * torch.Size(cache.grid).numel() * 4)
    assert min(found.encode_s, found.write_s, found.read_s, found.free_bytes) > 0
    fill_cache(cache, tiny_model, "float32", mixture, mixture.draw_all(), processor)
    assert estimate_cache(cache, tiny_model, "float32", mixture, mixture.draw_epochs(3, (0,)), processor).missing == 0


def test_features_of_a_convolutional_encoder_are_measured_and_kept(tiny_spec, tmp_path, mixture):
    """They are stored channels first and seen channels last."""
    encoder = {"name": "timm_features", "model_name": "test_efficientnet", "image_px": 64}
    model = mmblocks.build({**tiny_spec, "encoder": encoder}, seed=0).eval()
    cache, processor = FeatureCache.from_model(tmp_path, model, "float32"), Processor.from_model(model)
    estimate = estimate_cache(cache, model, "float32", mixture, mixture.draw_all(), processor)
    assert min(estimate.encode_s, estimate.write_s, estimate.read_s) > 0
    features = store.encode_views(model, torch.zeros(1, 3, *model.encoder.view_px, dtype=torch.uint8), "float32")
    assert not features.is_contiguous()
    write_features_file(tmp_path / "one.safetensors", features)
    assert torch.equal(store.read_features_file(tmp_path / "one.safetensors", "one"), features)


def test_it_is_said_when_it_does_not_pay(tiny_model, tmp_path, mixture, caplog, monkeypatch):
    slow = CacheEstimate(9.0, 9.0, encode_s=0.001, write_s=1.0, read_s=1.0, disk_bytes=1e3, free_bytes=1e9)
    monkeypatch.setattr(module, "estimate_cache", lambda *given: slow)
    with caplog.at_level("WARNING"):
        kept(tmp_path, tiny_model, mixture)
    assert "not worth it for this stage alone" in caplog.text
    assert "inf times or more" in caplog.text
    monkeypatch.setattr(module, "estimate_cache", lambda *given: replace(slow, free_bytes=10.0))
    with pytest.raises(ConfigError, match="choose a larger disk"):
        kept(tmp_path, tiny_model, mixture)


def test_images_that_are_read_otherwise_are_other_features(tiny_model, tmp_path):
    Image.new("RGBA", (24, 24), (0, 0, 0, 0)).save(tmp_path / "sheet.png")
    messages = [{"role": "user", "content": [{"type": "image", "image": tmp_path / "sheet.png"}]}]
    conversation = Conversation.from_messages(messages)
    seen = {}
    for alpha in ("white", "drop", "white"):
        tiny_model.spec = replace(tiny_model.spec, images=ImageReading(alpha=alpha))
        processor = Processor.from_model(tiny_model)
        cache = FeatureCache.from_model(tmp_path / "kept", tiny_model)
        (routed,) = processor.plan(conversation)
        (visual,) = conversation.visuals
        if not cache.has_features(visual, routed.plan):
            pixels = processor.render_visual(visual, routed.plan)
            write_features_file(cache.to_path(visual, routed.plan), store.encode_views(tiny_model, pixels, "float32"))
            seen[alpha] = pixels.unique().tolist()
    assert seen == {"white": [255], "drop": [0]}
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 2


def test_a_replaced_picture_has_another_place_in_the_cache_and_a_member_of_a_tar_its_own(tmp_path):
    picture = tmp_path / "a.bmp"
    Image.new("RGB", (8, 8), "red").save(picture)
    before = identify_visual(Visual("image", picture))
    assert identify_visual(Visual("image", picture)) == before
    members = {identify_visual(Visual("image", FileSlice(picture, offset, 10, "b.png"))) for offset in (0, 5)}
    Image.new("RGB", (8, 8), "blue").save(picture)  # of the same length
    assert len({before, identify_visual(Visual("image", picture)), *members}) == 4
