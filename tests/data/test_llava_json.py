"""LLaVA's JSON: records to conversations, with faults that name the record."""

import json

import pytest

from mmblocks.conversation import Text, Visual
from mmblocks.data.records.llava_json import read_llava
from mmblocks.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("cat.png", "dog.png", "clip.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def saved(folder, *records, name="data.json"):
    path = folder / name
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if name.endswith("jsonl") else f"[{','.join(lines)}]", encoding="utf-8")
    return path


def record(*said, **media):
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    return {"id": "abc", **media, "conversations": turns}


def read_one(folder, *records, **options):
    return read_llava(saved(folder, *records), **options)[0]


def shown(message, folder):
    """Parts as text and file names."""
    return [p.text if isinstance(p, Text) else p.source.relative_to(folder).as_posix() for p in message.parts]


def test_a_record_is_a_conversation_with_its_picture(folder):
    talk = read_one(folder, record("<image>\nWhat?", "A cat.", "Sure?", "Yes.", image="cat.png"))
    assert [m.role for m in talk.messages] == ["user", "assistant", "user", "assistant"]
    assert talk.messages[0].parts == (Visual("image", folder / "cat.png"), Text("\nWhat?"))
    assert talk.messages[3].text == "Yes."
    assert talk.origin == f"{folder / 'data.json'}:record 0 (id abc)"


def test_text_alone_is_a_conversation(folder):
    assert read_one(folder, record("Hi", "Hello!")).visuals == ()


def test_role_and_content_are_read_like_from_and_value(folder):
    turns = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    talk = read_one(folder, {"conversations": turns})
    assert [(m.role, m.text) for m in talk.messages] == [("system", ""), ("user", "Hi"), ("assistant", "Ho")]
    assert talk.origin == f"{folder / 'data.json'}:record 0"


def test_several_pictures_stay_where_they_are_written(folder):
    talk = read_one(folder, record("First <image> then <image>.", "Seen.", image=["cat.png", "dog.png"]))
    assert shown(talk.messages[0], folder) == ["First ", "cat.png", " then ", "dog.png", "."]


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("What is <image> this?", ["cat.png", "\nWhat is  this?"]),
        ("What is this? <image>", ["cat.png", "\nWhat is this?"]),
        (" <image>", ["cat.png"]),
        ("<image> What?", ["cat.png", " What?"]),
    ],
)
def test_a_lone_picture_moves_to_the_front_of_its_turn(folder, text, moved):
    talk = read_one(folder, record(text, "A cat.", image="cat.png"))
    assert shown(talk.messages[0], folder) == moved


def test_a_lone_picture_stays_when_asked(folder):
    talk = read_one(folder, record("What is <image>?", "A cat.", image="cat.png"), placement="as_written")
    assert shown(talk.messages[0], folder) == ["What is ", "cat.png", "?"]


def test_all_pictures_move_to_the_front_when_asked(folder):
    two = record("<image> and <image>?", "Pets.", image=["cat.png", "dog.png"])
    talk = read_one(folder, two, placement="all_first")
    assert shown(talk.messages[0], folder) == ["cat.png", "dog.png", "\nand ?"]


@pytest.mark.parametrize("marker", ["<image>", "<video>"])
def test_a_video_has_either_marker(folder, marker):
    talk = read_one(folder, record(f"{marker}\nWhat moves?", "A dog.", video="clip.mp4"))
    assert talk.visuals == (Visual("video", folder / "clip.mp4"),)


def test_pictures_and_videos_mix_by_their_markers(folder):
    talk = read_one(folder, record("<video> or <image>?", "Both.", image="cat.png", video="clip.mp4"))
    assert shown(talk.messages[0], folder) == ["clip.mp4", " or ", "cat.png", "?"]


def test_media_have_their_own_roots(folder):
    (folder / "pictures").mkdir()
    (folder / "clips").mkdir()
    (folder / "pictures/a.png").touch()
    (folder / "clips/a.mp4").touch()
    path = saved(folder, record("<image> <video>", "Both.", image="a.png", video="a.mp4"))
    talk = read_llava(path, folder / "pictures", video_root=folder / "clips")[0]
    assert [v.source for v in talk.visuals] == [folder / "pictures/a.png", folder / "clips/a.mp4"]


def test_lines_are_read_when_asked_for_and_blank_ones_skipped(folder):
    path = saved(folder, record("é", "Eins."), record("Hi", "Zwei."), name="data.jsonl")
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\n\n") + "\n\n{broken", encoding="utf-8")
    source = read_llava(path)
    assert len(source) == 3
    assert source[1].messages[1].text == "Zwei."
    assert source[-2].origin.startswith(f"{path}:record 1 ")
    with pytest.raises(DataError, match=r"data.jsonl:record 2: not JSON"):
        source[2]


def test_a_source_is_read_to_its_end(folder):
    source = read_llava(saved(folder, record("a", "b"), record("c", "d")))
    assert [talk.messages[0].text for talk in source] == ["a", "c"]
    with pytest.raises(IndexError):
        source[2]


FAULTS = [
    (
        record("<image><image><image>", "x", image=["cat.png", "dog.png"]),
        "3 <image> markers but 2 images; add the image or",
    ),
    (record("<image>", "x", image=["cat.png", "dog.png"]), "1 <image> marker but 2 images; write <image> where"),
    (record("What?", "<image>", image=["cat.png", "dog.png"]), "1 <image> marker but 2 images; write <image> where"),
    (record("<video>", "x", image="cat.png", video="clip.mp4"), "0 <image> markers but 1 image; write <image> where"),
    (record("<image>", "x"), "1 <image> marker but 0 images"),
    (record("<image>", "x", image="no.png"), r"the image .*no.png does not exist; check the path and the media root"),
    (record("<video>", "x", video="no.mp4"), r"the video .*no.mp4 does not exist"),
    (record("<image>", "x", image=[1]), r"'image' is \[1\]; write a path or a list of paths"),
    (record("Hi", " "), "turn 1: the answer is empty"),
    (record(), r"'conversations' is \[\]; write a list"),
    ({"id": "abc"}, "'conversations' is None"),
    (
        {"id": "abc", "conversations": [{"from": "Human", "value": "Hi"}]},
        "turn 0: spoken by 'Human'; write one of human",
    ),
    ({"id": "abc", "conversations": [{"from": ["x"], "value": "Hi"}]}, r"turn 0: spoken by \['x'\]"),
    ({"id": "abc", "conversations": [{"from": "human"}]}, "turn 0: its text is None; write a string"),
    ({"id": "abc", "conversations": ["Hi"]}, "turn 0: a turn is .* not 'Hi'"),
]


@pytest.mark.parametrize(("bad", "fault"), FAULTS)
def test_a_fault_names_the_record(folder, bad, fault):
    source = read_llava(saved(folder, record("Hi", "Hello!"), bad))
    assert len(source[0].messages) == 2
    with pytest.raises(DataError, match=rf"data.json:record 1 \(id abc\).*{fault}"):
        source[1]


def test_a_key_that_stands_twice_is_a_fault(folder):
    path = folder / "data.json"
    path.write_text('[{"image": "cat.png", "image": "dog.png", "conversations": []}]')
    with pytest.raises(DataError, match="record 0: the key 'image' stands twice; keep one"):
        read_llava(path)[0]
    path.write_text('[{"conversations": [{"from": "human", "value": "a", "value": "b"}]}]')
    with pytest.raises(DataError, match="record 0, turn 0: the key 'value' stands twice"):
        read_llava(path)[0]


def test_a_record_is_an_object(folder):
    with pytest.raises(DataError, match="record 0: a record is an object"):
        read_one(folder, ["Hi"])


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("data.csv", "", r"data.csv: its name ends in '.csv'; LLaVA records are read from .json and .jsonl"),
        ("data.json", "[{", "data.json: not JSON: .*line 1"),
        ("data.json", "{}", "data.json: it holds one dict; .* is a list"),
    ],
)
def test_a_file_that_holds_no_records_is_a_fault(folder, name, text, fault):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=fault):
        read_llava(folder / name)


def test_a_missing_file_is_a_fault(folder):
    with pytest.raises(DataError, match=r"gone.json: there is no such file"):
        read_llava(folder / "gone.json")


# What a file holds, whatever its name ---------------------------------------------------------------------------------

ONE, TWO = (json.dumps({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": n}]}) for n in "12")
CHAT = json.dumps([{"role": "user", "content": "?"}, {"role": "assistant", "content": "1"}])
BOM = "\ufeff"


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "DATA.JSON"])
@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (f"{ONE}\n{TWO}\n", "12"),
        (f"{ONE}\r\n\r\n{TWO}", "12"),
        (f"{BOM}{ONE}\n{TWO}\n", "12"),
        (f"{BOM}\n \n{ONE}\n{TWO}\n", "12"),
        (ONE, "1"),
        (f"[{ONE}, {TWO}]", "12"),
        (f"{BOM}[\n{ONE},\n{TWO}\n]\n", "12"),
        (json.dumps([json.loads(ONE), json.loads(TWO)], indent=2), "12"),
        (f"{CHAT}\n{CHAT}", "11"),
        (f"[{CHAT}]", "1"),
    ],
)
def test_a_list_and_one_record_a_line_are_told_apart_by_what_the_file_holds(folder, name, text, answers):
    (folder / name).write_text(text, encoding="utf-8")
    assert "".join(talk.messages[1].text for talk in read_llava(folder / name)) == answers


def test_one_record_over_several_lines_is_read(folder):
    (folder / "data.json").write_text(json.dumps(json.loads(ONE), indent=2))
    assert len(read_llava(folder / "data.json")) == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"[{ONE}, ]", r"not JSON: .*Remove the comma before '\]'"),
        ('[{"conversations": [], }]', "not JSON: .*Remove the comma before '}'"),
        (f"{ONE},\n{TWO}\n", "not JSON: .*one record a line, with no comma between them"),
        (ONE + TWO, "not JSON: .*Write a list of records, or one record a line"),
        ('{"data": []}', "it holds one dict with the keys data; a file of records is a list"),
        (" \n", "it is empty; write a list of records"),
        ("3", "it holds one int"),
    ],
)
def test_a_file_that_is_no_json_says_what_to_write(folder, text, fault):
    (folder / "data.json").write_text(text)
    with pytest.raises(DataError, match=rf"data\.json: {fault}"):
        read_llava(folder / "data.json")


def test_a_line_that_ends_in_a_comma_says_so(folder):
    (folder / "data.jsonl").write_text(f"{ONE}\n{TWO},\n")
    with pytest.raises(DataError, match=r"data\.jsonl:record 1: not JSON: .*with no comma between them"):
        read_llava(folder / "data.jsonl")[1]
    (folder / "data.jsonl").write_text(f"{ONE}\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"data\.jsonl: it is encoded in UTF-16; save it as UTF-8"):
        read_llava(folder / "data.jsonl")
