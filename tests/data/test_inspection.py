"""What is said and drawn of samples is what the model gets."""

import html
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from mmblocks.batch import IGNORE
from mmblocks.components import tokenizers
from mmblocks.conversation import Conversation, Message, PreferencePair, Text, Visual
from mmblocks.data.inspect.drawing import (
    BOXES,
    PADDING,
    PAPER,
    STRIPES,
    draw_figures,
    draw_views,
    draw_visual,
    find_region,
)
from mmblocks.data.inspect.figures import compute_figures, inspect_conversation, inspect_records, parse_record
from mmblocks.data.inspect.record_page import make_page
from mmblocks.data.media.pixels import render_views
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources.guess import guess_source
from mmblocks.errors import ConfigError, DataError
from mmblocks.geometry.views import make_cropped_view, make_padded_view, make_squashed_view
from mmblocks.poolings.none import NoPooling
from mmblocks.shapes import Box, Size, View, VisualShape

FILL = (127, 100, 90)


@pytest.fixture(scope="module")
def processor(tiny_spec):
    return Processor.from_spec(tiny_spec)


@dataclass(frozen=True)
class Talks:
    talks: tuple

    def __len__(self):
        return len(self.talks)

    def __getitem__(self, index):
        return self.talks[index]


def mixture(*groups):
    names = tuple(f"{i} talks" for i in range(len(groups)))
    return Mixture(tuple(map(Talks, groups)), (1.0,) * len(groups), names)


def talk(*turns, origin="talk"):
    messages = []
    for i, turn in enumerate(turns):
        parts = turn if isinstance(turn, tuple) else (turn,)
        role = ("user", "assistant")[i % 2]
        messages.append(Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts)))
    return Conversation(tuple(messages), origin)


def image(width=40, height=30):
    return Visual("image", Image.new("RGB", (width, height), (200, 30, 30)))


def clip(frames):
    return Visual("video", np.zeros((frames, 24, 32, 3), dtype=np.uint8), fps=2.0)


# Boxes --------------------------------------------------------------------------------------------------------------


def coordinates(size):
    """An image whose red says the column and whose green says the row, in 256ths of its sides."""
    columns = (np.arange(size.width) + 0.5) * 256 / size.width
    rows = (np.arange(size.height) + 0.5) * 256 / size.height
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = columns[None, :], rows[:, None], 255
    return Image.fromarray(pixels)


def views_of(name, size):
    px = Size(24, 24)
    match name:
        case "squashed" | "cropped" | "padded":
            return (
                {"squashed": make_squashed_view, "cropped": make_cropped_view, "padded": make_padded_view}[name](
                    0, size, px
                ),
            )
        case _:
            wired = {"view_px": px, "grid": Size(3, 3), "spatial": True, "squash": True, "pooling": NoPooling()}
            wanted = {k: v for k, v in wired.items() if k in tokenizers.find_wired_arguments(name)}
            return (
                tokenizers.build({"name": name, **tokenizers[name].tiny}, **wanted)
                .plan(VisualShape("image", size))
                .views
            )


@pytest.mark.parametrize("size", [Size(90, 60), Size(50, 133), Size(200, 201)], ids=str)
@pytest.mark.parametrize("name", ["squashed", "cropped", "padded", "anyres", "tiling", "crop_split"])
def test_a_box_is_drawn_where_the_view_gets_its_pixels(name, size):
    """The model's pixels say where they come from; the region says the same, within a pixel of the view."""
    views = views_of(name, size)
    pixels = render_views(coordinates(size), views, FILL).permute(0, 2, 3, 1).numpy().astype(float)
    for view, shown in zip(views, pixels, strict=True):
        region = find_region(view, size)
        ys = region.top + (np.arange(shown.shape[0]) + 0.5) * region.height / shown.shape[0]
        xs = region.left + (np.arange(shown.shape[1]) + 0.5) * region.width / shown.shape[1]
        # Filters blend over a few pixels, so the edges of the image are left out.
        rim_y, rim_x = 3 * region.height / shown.shape[0], 3 * region.width / shown.shape[1]
        inside = np.ix_((ys > rim_y) & (ys < size.height - rim_y), (xs > rim_x) & (xs < size.width - rim_x))
        grid_y, grid_x = np.meshgrid(ys * 256 / size.height, xs * 256 / size.width, indexing="ij")
        step = max(256 * region.height / size.height / shown.shape[0], 256 * region.width / size.width / shown.shape[1])
        assert np.abs(shown[..., 0] - grid_x)[inside].max() <= step
        assert np.abs(shown[..., 1] - grid_y)[inside].max() <= step
        outside = (grid_y < -2 * step) | (grid_y > 256 + 2 * step) | (grid_x < -2 * step) | (grid_x > 256 + 2 * step)
        assert (shown[outside][:, 2] < 255).all()  # padding is no pixel of the image


def test_the_original_plus_its_padding_is_what_all_tiles_of_a_canvas_show():
    views = views_of("anyres", Size(50, 133))[1:]
    regions = [find_region(view, Size(50, 133)) for view in views]
    assert len(views) == 2
    assert regions[0].top == regions[1].top
    assert regions[0].left == pytest.approx(0)
    assert regions[1].left == pytest.approx(133 / 2)
    assert regions[0].top + regions[0].height / 2 == pytest.approx(25, abs=1.5)  # padding above and below


NUMBERED = {1: (10, 10, 10), 2: (60, 60, 60), 3: (110, 110, 110), 4: (240, 240, 240)}


def test_each_box_is_drawn_around_its_own_cell_with_its_own_colour():
    picture = Image.new("RGB", (48, 48))
    for number, colour in NUMBERED.items():
        row, column = divmod(number - 1, 2)
        picture.paste(colour, (column * 24, row * 24, column * 24 + 24, row * 24 + 24))
    square = Size(48, 48)
    views = [
        (n, View(0, square, square, square, Box(24 * ((n - 1) // 2), 24 * ((n - 1) % 2), 24, 24))) for n in NUMBERED
    ]
    drawn = np.asarray(draw_views(picture, views, longest_px=480))
    assert drawn.shape == (480, 480, 3)
    for number, colour in NUMBERED.items():
        row, column = divmod(number - 1, 2)
        cell = drawn[row * 240 : row * 240 + 240, column * 240 : column * 240 + 240]
        edge = np.concatenate([cell[-1], cell[-2], cell[:, -1], cell[:, -2], cell[20:, 0], cell[20:, 1]])
        assert (edge == BOXES[number - 1]).all()
        assert (cell[40:-2, 2:-2] == colour).all()
        label = cell[2:16, 2:12].reshape(-1, 3)
        assert (label == BOXES[number - 1]).all(1).any()
        assert (label != BOXES[number - 1]).any()


def test_padding_is_drawn_as_grey_stripes_around_the_picture():
    wide, square = Size(20, 40), Size(40, 40)
    view = View(0, square, square, square, Box(0, 0, 40, 40))
    drawn = np.asarray(draw_views(Image.new("RGB", (40, 20), (1, 2, 3)), [(1, view)], longest_px=400))
    above, below, middle = drawn[20:98, 2:-2], drawn[302:-2, 2:-2], drawn[102:298, 2:-2]
    greys = {PADDING, STRIPES}
    assert {tuple(p) for p in above.reshape(-1, 3).tolist()} == greys
    assert {tuple(p) for p in below.reshape(-1, 3).tolist()} == greys
    assert {tuple(p) for p in middle.reshape(-1, 3).tolist()} == {(1, 2, 3)}
    assert find_region(view, wide) == (-10, 0, 40, 40)


def test_a_picture_has_one_panel_per_resize_and_a_clip_one_per_frame(processor):
    (tiled,) = inspect_conversation(talk((image(40, 90), "What?"), "cat"), processor).visuals
    assert len({(v.resized, v.canvas) for v in tiled.routed.plan.views}) == 2
    (moving,) = inspect_conversation(talk((clip(9), "What?"), "cat"), processor).visuals
    assert [n for n, _ in moving.frames] == [0, 2, 5, 8]
    assert [s for _, s in moving.frames] == [0, 1, 2.5, 4]
    for shown, panels in ((tiled, 2), (moving, 4)):
        columns = (np.asarray(draw_visual(shown)) != PAPER).any(2)[20:].any(0)
        assert int(np.diff(columns.astype(int), prepend=0).clip(0).sum()) == panels


# Prompts ------------------------------------------------------------------------------------------------------------


ANSWERS = ("a red cat 🐈 é", "  two\n\nlines ")


def test_marked_tokens_are_exactly_the_answers_and_their_ends(processor):
    shown = inspect_conversation(
        talk((image(), "\nWhat 猫?"), ANSWERS[0], (image(), image(), "And?"), ANSWERS[1]), processor
    )
    assert shown.target_text == "".join(f"{answer}<|im_end|>" for answer in ANSWERS)
    trained = [t for t in shown.encoded.targets.tolist() if t != IGNORE]
    assert sum(len(p.texts) for p in shown.prompt if hasattr(p, "trained") and p.trained) == len(trained)
    texts = "".join(p.text if hasattr(p, "text") else f"<{p.number}>" for p in shown.prompt)
    assert texts == (
        "<|im_start|>user\n<1>\nWhat 猫?<|im_end|>\n<|im_start|>assistant\n" + ANSWERS[0] + "<|im_end|>\n"
        "<|im_start|>user\n<2><3>And?<|im_end|>\n<|im_start|>assistant\n" + ANSWERS[1] + "<|im_end|>\n"
    )
    rows = {p.number: p.num_tokens for p in shown.prompt if hasattr(p, "num_tokens") and hasattr(p, "number")}
    assert rows == {n: v.routed.plan.num_tokens for n, v in enumerate(shown.visuals, start=1)}


def test_told_texts_stand_between_the_rows_of_their_visual(tiny_spec):
    stamped = Processor.from_spec(tiny_spec, tokenizer={"video": {"name": "stamped_frames", "max_frames": 2}})
    shown = inspect_conversation(talk((clip(9), "What?"), "cat"), stamped)
    seen = [p.text if hasattr(p, "text") else p.number for p in shown.prompt][:5]
    assert seen == ["<|im_start|>user\n0.00s: ", 1, "4.00s: ", 1, "What?<|im_end|>\n<|im_start|>assistant\n"]


def test_visuals_are_shown_where_a_run_puts_them(processor):
    shown = inspect_conversation(talk(("Look: ", image()), "cat"), replace(processor, visuals="front"))
    assert shown.prompt[1].number == 1
    assert shown.prompt[2].text.startswith("\nLook: the image")


def test_a_page_marks_the_same_tokens_and_holds_its_pictures(processor):
    shown = inspect_conversation(talk((image(), "<b>What?</b>"), "a & b\nc", (clip(3), "?"), "d"), processor)
    page = make_page(shown)
    marked = "".join(re.findall(r"<mark>(.*?)</mark>", page, re.DOTALL)).replace("↵", "")
    assert html.unescape(marked) == shown.target_text == "a & b\nc<|im_end|>d<|im_end|>"
    assert page.count("data:image/png;base64,") == 2
    assert "<b>What?" not in page
    assert "3 of 3 frames at 2 per second" in page


def test_a_sample_that_is_too_long_is_shown_with_its_fault(processor):
    shown = inspect_conversation(talk("Hi", "hello"), replace(processor, max_tokens=3))
    assert [finding.kind for finding in shown.findings] == ["too_long"]
    with pytest.raises(DataError, match="talk: none of its"):
        inspect_conversation(talk("Hi"), processor)


def test_both_sides_of_a_pair_are_shown(processor):
    pairs = mixture([PreferencePair(talk("Hi", "yes"), talk("Hi", "no"))])
    shown = inspect_records(pairs, Draw(0, 0), processor)
    assert [one.target_text for one in shown] == ["yes<|im_end|>", "no<|im_end|>"]


# Figures ------------------------------------------------------------------------------------------------------------


def test_figures_count_what_a_source_holds(processor):
    talks = [
        talk((image(), "What?"), "cat", "Sure?", "yes"),
        talk((image(), image(), clip(3), "What?"), "cats"),
        talk("Hi", "hello"),
        talk("Hi"),
        talk((Visual("image", "nowhere.png"), "What?"), "cat"),
    ]
    (found,) = compute_figures(mixture(talks), processor)
    assert (found.images, found.videos, found.text_only, found.turns) == (4, 1, 2, 5)
    encoded = [e for one in talks[:3] for e in processor.encode_item(one)]
    assert found.tokens.tolist() == [len(e) for e in encoded]
    assert found.labels.tolist() == [e.num_labelled for e in encoded]
    assert found.views.tolist() == [sum(len(p.plan.views) for p in e.plans) for e in encoded]
    assert found.lint.counts == {"broken": 1, "nothing_trained": 1}
    assert found.compute_quantiles("views") == tuple(sorted(found.views.tolist())[i] for i in (0, 1, 2, 2))


def test_quantiles_are_values_that_samples_have(processor):
    (found,) = compute_figures(mixture([talk("Hi", "yes")]), processor)
    ramp = replace(found, tokens=np.arange(1, 101))
    assert ramp.compute_quantiles("tokens") == (5, 50, 95, 100)
    assert replace(found, tokens=np.array([], dtype=int)).compute_quantiles("tokens") is None


def test_the_picture_has_a_row_for_every_source(processor, tmp_path):
    found = compute_figures(mixture([talk("Hi", "yes")] * 5, [talk("Hi")]), processor, samples_per_source=3)
    assert [(f.lint.size, f.lint.num_checked, len(f.tokens)) for f in found] == [(5, 3, 3), (1, 1, 0)]
    draw_figures(found, tmp_path / "figures.png", "a title")
    with Image.open(tmp_path / "figures.png") as picture:
        assert min(picture.size) > 300
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 20


@pytest.mark.parametrize(("text", "place"), [("0", (0, 0)), ("2", (1, 0)), ("4", (1, 2)), ("1:1", (1, 1))])
def test_records_are_counted_through_the_sources_or_in_one(text, place):
    assert parse_record(text, mixture([None] * 2, [None] * 3)) == place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "there are 5 records"),
        ("2:0", "there are 2 sources"),
        ("1:3", "source 1 holds 3 records"),
        ("-1", "write N, or SOURCE:N"),
        ("a:1", "write N, or SOURCE:N"),
        ("1:", "write N, or SOURCE:N"),
    ],
)
def test_a_record_that_is_not_there_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_record(text, mixture([None] * 2, [None] * 3))


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "source"),
    [
        ("a.json", '[{"id": 1, "conversations": []}]', "llava_json"),
        ("a.jsonl", '\n{"conversations": [], "note": "messages"}\n', "llava_json"),
        ("a.json", '[{"messages": [{"role": "user"}]}]', "messages"),
        ("a.jsonl", '{"id": 2, "messages": []}\n', "messages"),
        ("a.jsonl", '[{"role": "user", "content": "Hi"}]\n', "messages"),
        ("a.json", '[[{"role": "user", "content": "Hi"}]]', "messages"),
        ("a.json", '[{"text": "' + "x" * 70_000 + '", "messages": []}]', "llava_json"),
        ("a.json", '[{"messages": [{"content": "' + "x" * 70_000 + '"}]}]', "messages"),
        ("a.json", "not json", "llava_json"),
        ("a.json", '{"id": 1, "messages": []}\n{"id": 2, "messages": []}\n', "messages"),
        ("a.json", '\ufeff[{"messages": []}]', "messages"),
        ("a.json", '[{"prompt": "?", "chosen": "a", "rejected": "b"}]', "llava_pairs"),
        ("a.PARQUET", "", "parquet"),
        ("a.tar", "", "webdataset"),
        ("a.yaml", "", "llava_mixture"),
    ],
)
def test_a_file_is_read_by_the_source_its_name_and_first_record_ask_for(tmp_path, name, content, source):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert guess_source(str(path)) == {"name": source, "path": str(path)}


def test_folders_are_read_as_tars_or_as_parquet(tmp_path):
    assert guess_source(str(tmp_path))["name"] == "parquet"
    (tmp_path / "0.tar").touch()
    assert guess_source(str(tmp_path)) == {"name": "webdataset", "path": str(tmp_path / "*.tar")}


def test_a_suffix_that_nothing_reads_is_refused():
    with pytest.raises(ConfigError, match=r"data=x.csv: nothing reads .*'.csv'; write one that ends in .json"):
        guess_source("x.csv")
