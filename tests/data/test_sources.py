"""The same conversations through every source; what is wrong with the data is said with its place."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pictures

from mmblocks.assets import media
from mmblocks.conversation import Conversation, Pair, Text, Visual
from mmblocks.data.media.images import image_size, load_image
from mmblocks.data.media.visuals import shape_of
from mmblocks.data.sources import sources
from mmblocks.data.video import read_frames
from mmblocks.errors import ConfigError, DataError
from mmblocks.shapes import Size

TALKS = [
    ("What is this?", ["red.png"], "A red square."),
    ("Which is larger?", ["red.png", "tall.png"], "The second."),
    ("Hi", [], "Hello!"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture((255, 0, 0), (8, 8)).save(tmp_path / "red.png")
    picture((0, 0, 255), (8, 20)).save(tmp_path / "tall.png")
    return tmp_path


def picture(colour, size):
    return Pictures.new("RGB", size, colour)


def saved(path, records):
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return str(path)


def question(asked, shown):
    return "<image>" * len(shown) + "\n" + asked if shown else asked


def as_llava(talk, number=0):
    asked, shown, answer = talk
    turns = [{"from": "human", "value": question(asked, shown)}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "image": shown or None, "conversations": turns}


def as_messages(talk):
    asked, shown, answer = talk
    turns = [{"role": "user", "content": question(asked, shown)}, {"role": "assistant", "content": answer}]
    return {"images": shown, "messages": turns}


def as_parts(talk, named=True):
    asked, shown, answer = talk
    pictures = [{"type": "image", "image": name} if named else {"type": "image"} for name in shown]
    text = {"type": "text", "text": f"\n{asked}" if shown else asked}
    turns = [{"role": "user", "content": [*pictures, text]}, {"role": "assistant", "content": answer}]
    return {"messages": turns} if named else {"images": shown, "messages": turns}


def as_pair_of_texts(talk):
    asked, shown, answer = talk
    return {"question": asked, "images": shown, "answer": answer}


def content(talk):
    """A conversation as plain values: roles, texts, and pictures by size and first pixel."""
    assert isinstance(talk, Conversation)
    return [(m.role, [p.text if isinstance(p, Text) else seen(p.source) for p in m.parts]) for m in talk.messages]


def seen(source):
    pixels = np.asarray(load_image(source))
    return Size(*pixels.shape[:2]), tuple(pixels[0, 0])


def expected():
    looks = {"red.png": (Size(8, 8), (255, 0, 0)), "tall.png": (Size(20, 8), (0, 0, 255))}
    return [
        [("user", [*(looks[name] for name in shown), f"\n{asked}" if shown else asked]), ("assistant", [answer])]
        for asked, shown, answer in TALKS
    ]


def parquet(path, rows, features=None):
    Dataset.from_list(rows, features=features).to_parquet(path)
    return str(path)


def with_bytes(rows, folder, column="images"):
    return [{**r, column: [{"bytes": (folder / n).read_bytes(), "path": None} for n in r[column] or []]} for r in rows]


def tar(path, members, end=True):
    """A tar of (name, bytes) pairs in this order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def in_tar(folder, talks, record):
    for number, talk in enumerate(talks):
        yield f"s/{number:03d}.json", json.dumps(record(talk)).encode()
        for i, name in enumerate(talk[1]):
            yield f"s/{number:03d}.{i}.png", (folder / name).read_bytes()


# The same through all -----------------------------------------------------------------------------------------------


def llava_json(folder):
    return {"name": "llava_json", "path": saved(folder / "a.json", map(as_llava, TALKS))}


def several_files(folder):
    first, second = saved(folder / "a.json", [as_llava(TALKS[0])]), saved(folder / "b.jsonl", map(as_llava, TALKS[1:]))
    return {"name": "llava_json", "path": [first, second]}


def in_braces(folder):
    saved(folder / "a.json", [as_llava(TALKS[0])])
    saved(folder / "b.json", map(as_llava, TALKS[1:]))
    return {"name": "llava_json", "path": f"{folder}/{{a,b}}.json"}


def mixture(folder):
    saved(folder / "a.json", map(as_llava, TALKS))
    (folder / "m.yaml").write_text(
        "datasets: [{json_path: a.json, sampling_strategy: 'first:1'}, {json_path: a.json, sampling_strategy: 'end:2'}]"
    )
    return {"name": "llava_mixture", "path": str(folder / "m.yaml")}


def messages(folder):
    return {"name": "messages", "path": saved(folder / "m.jsonl", map(as_messages, TALKS))}


def messages_in_parts(folder):
    return {"name": "messages", "path": saved(folder / "m.json", map(as_parts, TALKS))}


def messages_alone(folder):
    return {"name": "messages", "path": saved(folder / "m.json", [as_parts(talk)["messages"] for talk in TALKS])}


def parts_without_names(folder):
    return {"name": "messages", "path": saved(folder / "m.json", [as_parts(talk, named=False) for talk in TALKS])}


def questions_and_answers(folder):
    return {"name": "messages", "path": saved(folder / "m.json", map(as_pair_of_texts, TALKS))}


def parquet_of_paths(folder):
    return {"name": "parquet", "path": parquet(folder / "t.parquet", list(map(as_llava, TALKS)))}


def parquet_of_bytes(folder):
    rows = with_bytes([as_messages(talk) for talk in TALKS], folder)
    return {"name": "parquet", "path": parquet(folder / "t.parquet", rows)}


def parquet_in_a_folder(folder):
    (folder / "tables/deep").mkdir(parents=True)
    parquet(folder / "tables/a.parquet", [as_pair_of_texts(TALKS[0])])
    parquet(folder / "tables/deep/b.parquet", [as_pair_of_texts(talk) for talk in TALKS[1:]])
    return {"name": "parquet", "path": str(folder / "tables"), "images": str(folder)}


def parquet_of_named_columns(folder):
    rows = [{"q": asked, "a": answer, "pics": shown, "answer": "not this"} for asked, shown, answer in TALKS]
    columns = {"question_column": "q", "answer_column": "a", "image_column": "pics"}
    return {"name": "parquet", "path": parquet(folder / "t.parquet", rows), **columns}


def parquet_of_pairs(folder):
    rows = [{"images": shown, "texts": [{"user": asked, "assistant": answer}]} for asked, shown, answer in TALKS]
    return {"name": "parquet", "path": parquet(folder / "t.parquet", with_bytes(rows, folder))}


def parquet_of_json_text(folder):
    rows = [{"images": talk[1], "messages": json.dumps(as_messages(talk)["messages"])} for talk in TALKS]
    return {"name": "parquet", "path": parquet(folder / "t.parquet", rows)}


def parquet_in_parts(folder):
    rows = with_bytes([as_parts(talk, named=False) for talk in TALKS], folder)
    for row in rows:
        row["messages"] = [
            {"role": m["role"], "content": c if isinstance(c := m["content"], list) else [{"type": "text", "text": c}]}
            for m in row["messages"]
        ]
    return {"name": "parquet", "path": parquet(folder / "t.parquet", rows)}


def dataset_on_disk(folder):
    rows = [{**as_pair_of_texts(talk), "images": [str(folder / n) for n in talk[1]]} for talk in TALKS]
    features = Features({"question": Value("string"), "images": List(Image()), "answer": Value("string")})
    DatasetDict({"train": Dataset.from_list(rows, features=features)}).save_to_disk(folder / "saved")
    return {"name": "parquet", "path": str(folder / "saved")}


def webdataset(folder):
    return {"name": "webdataset", "path": tar(folder / "t.tar", in_tar(folder, TALKS, as_llava))}


def webdataset_of_messages(folder):
    members = in_tar(folder, TALKS, lambda talk: as_messages(talk)["messages"])
    return {"name": "webdataset", "path": tar(folder / "t.tar", members)}


def webdataset_in_shards(folder):
    (folder / "shards").mkdir()
    tar(folder / "shards/09.tar", in_tar(folder, TALKS[:1], as_llava))
    tar(folder / "shards/10.tar", in_tar(folder, TALKS[1:], as_llava))
    return {"name": "webdataset", "path": f"{folder}/shards/{{09..10}}.tar", "keep_index": True}


FORMS = [
    llava_json,
    several_files,
    in_braces,
    mixture,
    messages,
    messages_in_parts,
    messages_alone,
    parts_without_names,
    questions_and_answers,
    parquet_of_paths,
    parquet_of_bytes,
    parquet_in_a_folder,
    parquet_of_named_columns,
    parquet_of_pairs,
    parquet_of_json_text,
    parquet_in_parts,
    dataset_on_disk,
    webdataset,
    webdataset_of_messages,
    webdataset_in_shards,
]


@pytest.fixture
def opened(folder):
    def open_(form):
        settings = form(folder)
        return sources.build(
            {**settings, "cache": str(folder / "cache")} if settings["name"] == "parquet" else settings
        )

    return open_


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_source_holds_the_same_conversations(opened, form):
    source = opened(form)
    assert [content(source[i]) for i in range(len(source))] == expected()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_any_conversation_is_read_alone_again_and_from_a_worker(opened, form):
    source = pickle.loads(pickle.dumps(opened(form)))
    assert [content(source[i]) for i in (2, 0, 2, -1)] == [expected()[i] for i in (2, 0, 2, 2)]
    origins = [source[i].origin for i in range(3)]
    assert len(set(origins)) == 3
    with pytest.raises(IndexError):
        source[3]


# Tables -------------------------------------------------------------------------------------------------------------


def build_parquet(folder, rows, **settings):
    path = parquet(folder / "t.parquet", rows)
    return sources.build({"name": "parquet", "path": path, "cache": str(folder / "cache"), **settings})


def test_captions_answer_what_is_asked(folder):
    source = build_parquet(folder, [{"image": "red.png", "caption": "A square."}], ask="Describe it.")
    assert content(source[0])[0] == ("user", [(Size(8, 8), (255, 0, 0)), "\nDescribe it."])


def test_a_broken_picture_is_not_opened_with_its_row(folder):
    source = build_parquet(folder, [{"image": b"no picture", "question": "What?", "answer": "Nothing."}])
    (visual,) = source[0].visuals
    with pytest.raises(DataError, match="image bytes: not a picture"):
        shape_of(visual)


def test_a_split_is_named(folder):
    rows = Dataset.from_list([as_pair_of_texts(TALKS[2])])
    DatasetDict({"one": rows, "other": rows}).save_to_disk(folder / "saved")
    assert len(sources.build("parquet", path=str(folder / "saved"), split="other")) == 1
    with pytest.raises(DataError, match="saved: there is no split 'train'; write split: one of one, other"):
        sources.build("parquet", path=str(folder / "saved"))


@pytest.mark.parametrize(
    ("row", "settings", "fault"),
    [
        ({"question": "Hi", "answer": None, "id": "x"}, {}, r"t.parquet:row 0 \(id x\): there is no text to learn"),
        ({"question": "Hi", "answer": " "}, {}, "row 0, turn 1: the answer is empty"),
        (as_llava(("Hi", ["gone.png"], "x")), {}, r"row 0 \(id 0\): the image .*gone.png does not exist"),
        ({"question": "<image><image>", "answer": "x", "image": "red.png"}, {}, "2 <image> markers but 1 image"),
        ({"messages": "[{", "image": None}, {}, "row 0: 'messages': not JSON"),
        ({"texts": [{"user": "Hi", "assistant": None}]}, {}, "row 0, turn 1: its text is None"),
    ],
)
def test_a_fault_names_the_row(folder, row, settings, fault):
    source = build_parquet(folder, [row, as_pair_of_texts(TALKS[2])], **settings)
    with pytest.raises(DataError, match=fault):
        source[0]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"conversation_column": "convs"}, "conversation_column='convs': there is no such column"),
        ({"answer_column": "said"}, "answer_column='said': there is no such column. Known: a, q"),
        ({}, "no column holds conversations; there are q, a. Name one as conversation_column"),
    ],
)
def test_columns_are_looked_for_when_a_table_is_opened(folder, settings, fault):
    with pytest.raises(ConfigError, match=fault):
        build_parquet(folder, [{"q": "Hi", "a": "Ho"}], **settings)


def test_what_is_no_table_is_named(folder):
    (folder / "t.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"t.parquet: cannot be read as parquet"):
        sources.build("parquet", path=str(folder / "t.parquet"), cache=str(folder / "cache"))
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: this folder holds no \*\.parquet"):
        sources.build("parquet", path=str(folder / "empty"))
    with pytest.raises(ConfigError, match="path=None and hub=None; write one of them"):
        sources.build("parquet")


def test_the_hub_out_of_reach_is_said(folder):
    with pytest.raises(DataError, match=r"nobody/nothing: cannot be loaded from the hub"):
        sources.build("parquet", hub="nobody/nothing", cache=str(folder / "cache"))


# Tars ---------------------------------------------------------------------------------------------------------------


def shard(path, **settings):
    return sources.build("webdataset", path=str(path), **settings)


def test_a_picture_and_its_text_are_a_caption(folder):
    image = (folder / "tall.png").read_bytes()
    tar(
        folder / "t.tar", [("dir/a.PNG", image), ("dir/a.txt", b"A tall one.\n"), ("dir/.hidden", b""), ("readme", b"")]
    )
    source = shard(folder / "t.tar", ask="What is it?")
    assert len(source) == 1
    assert content(source[0])[1] == ("assistant", ["A tall one."])
    assert content(source[0])[0] == ("user", [(Size(20, 8), (0, 0, 255)), "\nWhat is it?"])
    assert source[0].origin == f"{folder / 't.tar'}:dir/a"


def test_pictures_come_by_number(folder):
    names = [f"a.{i}.png" for i in (10, 2, 1)]
    tar(
        folder / "t.tar",
        [("a.json", json.dumps(as_llava(("?", names, "!"))).encode()), *((n, n.encode()) for n in names)],
    )
    assert [v.source.read() for v in shard(folder / "t.tar")[0].visuals] == [b"a.1.png", b"a.2.png", b"a.10.png"]


def test_a_clip_lies_in_a_tar_or_a_table_like_a_picture(folder):
    clip = Path(media("clip.mp4"))
    record = {"conversations": [{"from": "human", "value": "<video>\n?"}, {"from": "gpt", "value": "!"}]}
    members = [("a.json", json.dumps({**record, "video": "elsewhere.mp4"}).encode()), ("a.mp4", clip.read_bytes())]
    rows = [{**record, "video": {"bytes": clip.read_bytes(), "path": "a.mp4"}}]
    (in_tar,) = shard(tar(folder / "t.tar", members))[0].visuals
    (in_table,) = build_parquet(folder, rows)[0].visuals
    wanted = shape_of(Visual("video", clip))
    for visual in (in_tar, in_table):
        assert shape_of(visual) == wanted
        assert np.array_equal(read_frames(visual.source, [2, 0]), read_frames(clip, [2, 0]))


def test_of_a_picture_in_a_tar_only_the_header_is_read(folder, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Pictures.fromarray(noise).save(folder / "noise.png")
    tar(folder / "t.tar", in_tar(folder, [("?", ["noise.png"], "!")], as_llava))
    (visual,) = shard(folder / "t.tar")[0].visuals
    monkeypatch.setattr(type(visual.source), "read", None)
    assert image_size(visual.source) == Size(300, 400)
    assert np.array_equal(np.asarray(load_image(visual.source)), noise)


def test_an_index_is_kept_beside_a_tar_and_made_again_when_it_changes(folder):
    path = folder / "t.tar"
    tar(path, in_tar(folder, TALKS[:1], as_llava))
    assert len(shard(path)) == 1
    assert not (folder / "t.tar.index.json").exists()
    assert len(shard(path, keep_index=True)) == 1
    kept = json.loads((folder / "t.tar.index.json").read_text())
    assert [key for key, *_ in kept["members"]] == ["s/000", "s/000"]
    tar(path, in_tar(folder, TALKS, as_llava))
    assert len(shard(path, keep_index=True)) == 3
    (folder / "t.tar.index.json").write_text("{half")
    assert len(shard(path, keep_index=True)) == 3


def test_a_tar_that_is_cut_off_or_packed_wrongly_is_refused(folder):
    path = folder / "t.tar"
    tar(path, in_tar(folder, TALKS, as_llava))
    whole = path.read_bytes()
    for cut in (100, 700, 512 * 5, len(whole.rstrip(b"\0")) + 512 - len(whole.rstrip(b"\0")) % 512):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"t.tar: .*(cut off)"):
            shard(path)
    with tarfile.open(folder / "t.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"t.tar: not a tar, compressed"):
        shard(path)
    tar(path, [("a.json", b"{}"), ("b.json", b"{}"), ("a.png", b"")])
    with pytest.raises(DataError, match=r"t.tar: the sample 'a' stands there twice, or its members apart"):
        shard(path)


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("a.png", b"x")], "t.tar:a: there is no text to learn"),
        ([("a.json", b"{")], "t.tar:a.json: not JSON"),
        ([("a.json", b"3")], "t.tar:a.json: it holds 3; write a record"),
        ([("a.json", b'{"id": 1, "id": 2}')], "t.tar:a.json: the key 'id' stands twice"),
        ([("a.txt", b"\xff\xfe")], "t.tar:a.txt: not UTF-8"),
        ([("a.json", json.dumps(as_llava(("?", ["x.png"], "!"))).encode())], "'image' names 1, but the sample holds 0"),
    ],
)
def test_a_fault_names_the_sample(folder, members, fault):
    source = shard(tar(folder / "t.tar", members))
    with pytest.raises(DataError, match=fault):
        source[0]


# Messages -----------------------------------------------------------------------------------------------------------


def read_messages(folder, record):
    return sources.build("messages", path=saved(folder / "m.json", [record]))[0]


def test_pictures_may_be_links_with_data(folder):
    link = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    talk = read_messages(folder, [{"role": "user", "content": [link]}, {"role": "assistant", "content": "Ho"}])
    assert talk.visuals[0].source == "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"role": "user"}, "there is no text to learn"),
        (as_parts(("?", ["gone.png"], "!")), "the image .*gone.png does not exist"),
        (as_parts(("?", ["red.png"], " ")), "turn 1: the answer is empty"),
        (
            {"images": [], "messages": as_parts(TALKS[0], named=False)["messages"]},
            "message 0, part 0: no image is left",
        ),
        (
            {"images": ["red.png", "red.png"], **as_parts(TALKS[0], named=False) | {"images": ["red.png"] * 2}},
            "1 of them",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "a part is {'type'"),
        ({"messages": ["Hi"]}, "turn 0: a turn is"),
        (3, "a record is an object with its columns, not 3"),
    ],
)
def test_a_fault_names_the_record(folder, record, fault):
    with pytest.raises(DataError, match=rf"m.json:record 0.*{fault}"):
        read_messages(folder, record)


# Pairs --------------------------------------------------------------------------------------------------------------


def pair(**changes):
    return {"id": "p", "image": "red.png", "prompt": "What is it?", "chosen": "Red.", "rejected": "Blue.", **changes}


@pytest.mark.parametrize("prompt", ["What is it?", "What is it?<image>", "<image>\nWhat is it?"])
def test_a_pair_is_two_conversations_that_differ_in_the_answer(folder, prompt):
    path = saved(folder / "p.jsonl", [pair(prompt=prompt)])
    (item,) = [sources.build("llava_pairs", path=path)[0]]
    assert isinstance(item, Pair)
    asked = ("user", [(Size(8, 8), (255, 0, 0)), "\nWhat is it?"])
    assert content(item.chosen) == [asked, ("assistant", ["Red."])]
    assert content(item.rejected) == [asked, ("assistant", ["Blue."])]
    assert item.origin == f"{path}:record 0 (id p)"


def test_a_pair_may_have_turns_before_it(folder):
    turns = [{"role": r, "content": c} for r, c in (("user", "Look."), ("assistant", "Yes?"), ("user", "Colour?"))]
    path = saved(folder / "p.json", [pair(prompt=turns, chosen=[{"role": "assistant", "content": "Red."}])])
    talk = sources.build("llava_pairs", path=path)[0].chosen
    assert [text for _, (*_, text) in content(talk)] == ["\nLook.", "Yes?", "Colour?", "Red."]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"chosen": None}, "'chosen' is None; write a list"),
        ({"rejected": ""}, "'rejected', turn 0: the answer is empty"),
        ({"prompt": "<image><image>"}, "2 <image> markers but 1 image"),
        ({"prompt": [{"from": "gpt", "value": "Hi"}]}, "its prompt ends with a turn of the assistant"),
        ({"chosen": [{"from": "human", "value": "Hi"}]}, "'chosen' holds 1 turns; write one answer"),
    ],
)
def test_a_fault_names_the_pair(folder, changes, fault):
    source = sources.build("llava_pairs", path=saved(folder / "p.json", [pair(**changes)]))
    with pytest.raises(DataError, match=rf"p.json:record 0 \(id p\).*{fault}"):
        source[0]


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava_json", "messages", "llava_pairs", "webdataset", "parquet"])
@pytest.mark.parametrize("path", ["gone.json", "gone*.json", "{a,gone}.json"])
def test_a_missing_file_is_named(folder, name, path):
    (folder / "a.json").write_text("[]")
    with pytest.raises(DataError, match=r"gone\*?\.json: there is no such file"):
        sources.build(name, path=path)


def test_a_missing_media_folder_is_said_at_once(folder):
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        sources.build("llava_json", path=saved(folder / "a.json", []), images=str(folder / "nowhere"))


def test_patterns_are_read_in_order(folder):
    for name in ("b", "a"):
        saved(folder / f"{name}.json", [as_llava((name, [], "x"))])
    asked = lambda path: [  # noqa: E731
        talk.messages[0].text
        for source in [sources.build("llava_json", path=path)]
        for talk in map(source.__getitem__, range(2))
    ]
    assert asked(str(folder / "{b,a}.json")) == ["b", "a"]
    assert asked(str(folder / "*.json")) == ["a", "b"]
