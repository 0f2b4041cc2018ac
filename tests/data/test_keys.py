"""Every key of a record, a turn and a part is read, known as harmless, or refused by its name; nothing is lost silently."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from mmblocks.assets import find_media
from mmblocks.conversation import Conversation, PreferencePair, Text
from mmblocks.data.sources import sources
from mmblocks.errors import DataError
from mmblocks.keys import HARMLESS_KEYS, is_empty


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(name)
    (tmp_path / "v.mp4").write_bytes(Path(find_media("video.mp4")).read_bytes())
    (tmp_path / "frames").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(f"frames/{number}.png")
    return tmp_path


def read(record, source="llava_json", **settings):
    Path("x.json").write_text(json.dumps([record]), encoding="utf-8")
    return sources.build({"name": source, "path": "x.json", **settings})[0]


def told(talk):
    """Who says what: texts, and visuals by kind and file; answers that are not learned end in "(given)"."""
    if isinstance(talk, PreferencePair):
        return [told(talk.chosen), told(talk.rejected)]
    return [(f"{m.role}{'' if m.learn else ' (given)'}", *map(part, m.parts)) for m in talk.messages]


def part(one):
    if isinstance(one, Text):
        return one.text
    return f"{one.kind} {one.source.name if isinstance(one.source, Path) else len(one.source)}"


def llava(question="q", answer="a", **more):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer, **more}]


def chat(question="q", answer="a", **more):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]


SHOWN = [("user", "image a.png", "\nq"), ("assistant", "a")]
SAID = [("user", "q"), ("assistant", "a")]

READ = {
    # visuals: with markers, or before the first question where there are none
    "LLaVA, image": ({"image": "a.png", "conversations": llava("<image>\nq")}, SHOWN),
    "LLaVA, image without a marker": ({"image": "a.png", "conversations": llava()}, SHOWN),
    "LLaMA-Factory, images without a marker": ({"images": ["a.png"], "conversations": llava()}, SHOWN),
    "several": (
        {"images": ["a.png", "b.png"], "conversations": llava()},
        [("user", "image a.png", "image b.png", "\nq"), ("assistant", "a")],
    ),
    "a video": ({"videos": ["v.mp4"], "conversations": llava()}, [("user", "video v.mp4", "\nq"), ("assistant", "a")]),
    "a video of frames": (
        {"videos": [["frames/0.png", "frames/1.png"]], "conversations": llava("<video>q")},
        [("user", "video 2", "q"), ("assistant", "a")],
    ),
    "twice the same": ({"image": "a.png", "images": ["a.png"], "conversations": llava()}, SHOWN),
    "no image": ({"image": "", "images": [], "video": None, "conversations": llava()}, SAID),
    "a table's image": ({"images": [{"bytes": None, "path": "a.png"}], "conversations": llava()}, SHOWN),
    # the system text
    "system": ({"system": "S", "conversations": llava()}, [("system", "S"), *SAID]),
    "no system": ({"system": "", "conversations": llava()}, SAID),
    "system twice": (
        {"system": "S", "messages": [{"role": "system", "content": "S"}, *chat()]},
        [("system", "S"), *SAID],
    ),
    "system of parts": (
        {"system": "S", "messages": [{"role": "system", "content": [{"type": "text", "text": "S"}]}, *chat()]},
        [("system", "S"), *SAID],
    ),
    # which answers are learned
    "loss": ({"conversations": llava(loss=False)}, [("user", "q"), ("assistant (given)", "a")]),
    "weight": ({"messages": [*chat(weight=0), *chat(weight=1)]}, [("user", "q"), ("assistant (given)", "a"), *SAID]),
    "train": ({"messages": chat([{"type": "text", "text": "q"}], train=False)}, [("user", "q"), ("assistant (given)", "a")]),
    "marks of questions": ({"conversations": [{"from": "human", "value": "q", "weight": 0}, llava()[1]]}, SAID),
    # roles and turns
    "human and model": ({"messages": [{"role": "human", "content": "q"}, {"role": "model", "content": "a"}]}, SAID),
    "nulls of a table": (
        {"messages": chat(tool_calls=None, reasoning_content="", loss=None, name=None), "tools": "[]"},
        SAID,
    ),
    "from and role": ({"messages": [{"from": "user", "role": "user", "content": "q"}, chat()[1]]}, SAID),
    "Cauldron": ({"images": ["a.png"], "texts": [{"user": "q", "assistant": "a", "source": "x"}]}, SHOWN),
    # other forms
    "Alpaca": (
        {"instruction": "Do", "input": "this", "output": "a", "system": "S", "history": [["q", "b"]], "images": ["a.png"]},
        [("system", "S"), ("user", "image a.png", "\nq"), ("assistant", "b"), ("user", "Do\nthis"), ("assistant", "a")],
    ),
    "Alpaca without input": ({"instruction": "q", "input": "", "output": "a", "history": []}, SAID),
    "ms-swift": ({"query": "<image>\nq", "response": "a", "images": ["a.png"]}, SHOWN),
    "ms-swift with history": ({"query": "z", "response": "y", "history": [["q", "a"]]}, [*SAID, ("user", "z"), ("assistant", "y")]),
    "TRL": ({"prompt": "q", "completion": "a"}, SAID),
    "TRL in turns": (
        {"prompt": [*chat(), {"role": "user", "content": "z"}], "completion": [{"role": "assistant", "content": "y"}]},
        [("user", "q"), ("assistant (given)", "a"), ("user", "z"), ("assistant", "y")],
    ),
    "TRL in parts": (
        {
            "images": ["a.png"],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nq"}]}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
        },
        SHOWN,
    ),
    "a question beside an empty conversation": ({"conversations": [], "question": "q", "answer": "a"}, SAID),
    # parts
    "parts without a visual": (
        {"images": ["a.png"], "messages": chat([{"type": "text", "text": "\nq"}])},
        SHOWN,
    ),
    "a marker in a part": ({"images": ["a.png"], "messages": chat([{"type": "text", "text": "<image>\nq"}])}, SHOWN),
    "a marker beside parts": ({"images": ["a.png"], "messages": chat("<image>\nq", [{"type": "text", "text": "a"}])}, SHOWN),
    "indices of parts": (
        {
            "images": ["a.png", "b.png"],
            "messages": chat([{"type": "image", "index": i, "text": None} for i in (0, 1)]),
        },
        [("user", "image a.png", "image b.png"), ("assistant", "a")],
    ),
    "a link": (
        {"messages": chat([{"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}}])},
        [("user", "image a.png"), ("assistant", "a")],
    ),
    "frames with a pace": (
        {"messages": chat([{"type": "video", "video": "frames", "fps": 5}])},
        [("user", "video frames"), ("assistant", "a")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "wanted"), READ.values(), ids=READ)
@pytest.mark.parametrize("source", ["llava_json", "messages"])
def test_the_forms_of_the_field_are_read(folder, source, record, wanted):
    assert told(read(record, source)) == wanted


REFUSED = {
    "a misspelt key": ({"imges": "a.png", "conversations": llava()}, r"'imges' \(did you mean 'images'\?\)\. Rename or remove"),
    "several keys": ({"img": "a.png", "note": "x", "conversations": llava()}, "keys 'img' .*, 'note'"),
    "tools": ({"tools": '[{"name": "f"}]', "messages": chat()}, "'tools' .calls of tools are neither shown nor learned"),
    "audios": ({"audios": ["x.wav"], "messages": chat()}, "'audios' .sound is not read"),
    "objects": ({"objects": {"bbox": [1]}, "messages": chat()}, "'objects' .boxes are not read"),
    "preferences": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "'chosen' .preferences are read by the source 'llava_pairs'"),
    "rejected": ({"messages": chat(), "rejected_response": "b"}, "'rejected_response' .preferences"),
    "a label": ({"prompt": "q", "completion": "a", "label": True}, "'label' .classes, and labels of single answers"),
    "false": ({"prompt": "q", "completion": "a", "masked": False}, "'masked'"),
    "a turn for a record": ({"role": "user", "content": "q"}, "'role' .it belongs to a turn"),
    "plain text": ({"text": "Hello"}, "'text' .a text alone is no answer"),
    "two conversations": ({"conversations": llava(), "messages": chat()}, "'conversations' and 'messages' both hold"),
    "two images": ({"image": "a.png", "images": ["b.png"], "conversations": llava()}, "'image' and 'images' both hold"),
    "two answers": ({"question": "q", "answer": "a", "caption": "b"}, "'answer' and 'caption' both hold"),
    "two questions": ({"question": "q", "prompt": "p", "answer": "a"}, "'question' and 'prompt' both hold"),
    "a question beside a conversation": ({"question": "z", "messages": chat()}, "'question' beside 'messages': only the latter"),
    "an input alone": ({"input": "q", "output": "a"}, "'input' beside 'output'"),
    "two system texts": ({"system": "S", "messages": [{"role": "system", "content": "T"}, *chat()]}, "two different system texts"),
    "a system list": ({"system": ["S"], "messages": chat()}, r"'system' is \['S'\]; write a text"),
    "half a history": ({"query": "q", "response": "a", "history": [["q"]]}, r"'history', entry 0: \['q'\]; write \[question"),
    "half a weight": ({"messages": chat(weight=0.5)}, "turn 1: 'weight' is 0.5; an answer is learned or not"),
    "a loss in words": ({"messages": chat(loss="no")}, "turn 1: 'loss' is 'no'"),
    "two marks": ({"messages": chat(loss=True, weight=0)}, "turn 1: 'loss' is True and 'weight' is 0; keep one"),
    "a learned question": ({"messages": [{"role": "user", "content": "q", "loss": True}, chat()[1]]}, "only answers can be"),
    "thoughts": ({"messages": chat(reasoning_content="hm")}, "turn 1: nothing reads the key 'reasoning_content' .thoughts"),
    "calls": ({"messages": chat(tool_calls=[{"id": "1"}])}, "turn 1: .*'tool_calls'"),
    "a name": ({"messages": chat(name="Bob")}, "turn 1: .*'name'"),
    "an image in a turn": ({"conversations": llava(image="a.png")}, "turn 1: .*'image' .name it in the record"),
    "a tool's turn": ({"messages": [*chat(), {"role": "tool", "content": "x"}]}, "turn 2: a turn of the role 'tool' is not read"),
    "an observation": ({"conversations": [{"from": "observation", "value": "x"}]}, "role 'observation' is not read"),
    "a developer": ({"messages": [{"role": "developer", "content": "x"}]}, "'developer' is not read: write 'system'"),
    "two speakers": ({"messages": [{"from": "human", "role": "assistant", "content": "q"}]}, "'role' and 'from' differ"),
    "two texts": ({"messages": [{"role": "user", "content": "q", "value": "z"}]}, "'content' and 'value' differ"),
    "a hint of a pair": ({"texts": [{"user": "q", "assistant": "a", "hint": "z"}]}, "turn 0: .*'hint'"),
    "pixels of a part": (
        {"messages": chat([{"type": "image", "image": "a.png", "min_pixels": 3}])},
        "message 0, part 0: .*'min_pixels'",
    ),
    "an image in a text": ({"messages": chat([{"type": "text", "text": "q", "image": "a.png"}])}, "part 0: .*'image'"),
    "detail": ({"messages": chat([{"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}])}, "'detail' .how finely"),
    "a pace of a file": ({"messages": chat([{"type": "video", "video": "v.mp4", "fps": 2}])}, "fps is 2, but a video file"),
    "a pace of an image": ({"messages": chat([{"type": "image", "image": "a.png", "fps": 2}])}, "'fps' .only a video"),
    "a pace in words": ({"messages": chat([{"type": "video", "video": "frames", "fps": "slow"}])}, "fps is 'slow'; write frames"),
    "a number for a text": ({"messages": chat([{"type": "text", "text": 5}])}, "its text is 5; write a text"),
    "indices in another order": (
        {"images": ["a.png", "b.png"], "messages": chat([{"type": "image", "index": i} for i in (1, 0)])},
        "part 0: its index is 1, but it is the image of number 0",
    ),
    "a cropped image": ({"images": [{"path": "a.png", "crop": [1]}], "messages": chat()}, "'images': nothing reads the key 'crop'"),
    "some markers": ({"images": ["a.png", "b.png"], "messages": chat("<image>")}, "1 <image> marker but 2 images"),
}  # fmt: skip


@pytest.mark.parametrize(("record", "fault"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("source", ["llava_json", "messages"])
def test_what_nothing_reads_is_refused_by_its_name(folder, source, record, fault):
    with pytest.raises(DataError, match=rf"x\.json:record 0.*{fault}"):
        read(record, source)


@pytest.mark.parametrize(
    "extra",
    [
        {
            "id": 1,
            "model": "gpt",
            "data_source": "x",
            "metadata": {"a": 1},
            "width": 3,
        },  # LLaVA-665k, LLaVA-OneVision-Data
        {"source": "x", "relevance_ratings": [5], "relevance_min": 5},  # FineVision
        {"sample_id": 3, "choice_list": ["a"]},  # M4-Instruct
        {"__key__": "0", "__url__": "a.tar", "__index_level_0__": 4},
    ],
)
def test_what_data_sets_carry_beside_is_harmless(folder, extra):
    assert told(read({"conversations": llava(), **extra})) == SAID


@pytest.mark.parametrize(
    ("record", "ignore"),
    [
        ({"score": 3, "conversations": llava()}, ["score"]),
        ({"tools": ["f"], "messages": chat(reasoning_content="hm")}, ["tools", "reasoning_content"]),
        ({"messages": chat([{"type": "text", "text": "q", "cache_control": 1}])}, ["cache_control"]),
        ({"messages": chat(), "conversations": llava("other")}, ["conversations"]),
        ({"system": "S", "messages": json.dumps(chat(name="Bob"))}, ["system", "name"]),
    ],
)
def test_what_a_user_says_may_be_left_out_is(folder, record, ignore):
    assert told(read(record, ignore=ignore)) == SAID


def test_nothing_is_said_by_empty_values_only():
    assert all(map(is_empty, [None, "", " \n", [], {}, [None, ""], {"bytes": None, "path": ""}]))
    assert not any(map(is_empty, [0, False, "x", [0], {"a": False}, b""]))
    assert not any(
        "image" in name and name not in ("image_id", "image_width", "image_height") for name in HARMLESS_KEYS["turn"]
    )


# Messages in code -----------------------------------------------------------------------------------------------------


def test_messages_given_in_code_keep_to_the_same_rules():
    talk = Conversation.from_messages([*chat(weight=0), *chat(tool_calls=[])])
    assert [message.is_learned for message in talk.messages] == [False, False, False, True]
    with pytest.raises(DataError, match="message 1: nothing reads the key 'tool_calls'"):
        Conversation.from_messages(chat(tool_calls=[1]))
    with pytest.raises(DataError, match="message 0, part 0: nothing reads the key 'cache_control'"):
        Conversation.from_messages(chat([{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]))
    with pytest.raises(DataError, match="message 0, part 0: fps is 2, but a video file"):
        Conversation.from_messages(chat([{"type": "video", "video": "v.mp4", "fps": 2}]))


# Pairs ----------------------------------------------------------------------------------------------------------------

BOTH = [[("user", "q"), ("assistant", "a")], [("user", "q"), ("assistant", "b")]]
PAIRS = {
    "LLaVA": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "turns": {"prompt": chat()[:1], "chosen": chat()[1:], "rejected": chat(answer="b")[1:]},
    "LLaMA-Factory": {"conversations": llava()[:1], "chosen": llava()[1], "rejected": llava(answer="b")[1]},
    "LLaMA-Factory, Alpaca": {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    "TRL without a prompt": {"chosen": chat(), "rejected": chat(answer="b")},
    "ms-swift": {"messages": chat(), "rejected_response": "b"},
}


@pytest.mark.parametrize("record", PAIRS.values(), ids=PAIRS)
def test_pairs_are_read_in_the_forms_of_the_field(folder, record):
    assert told(read(record, "llava_pairs")) == BOTH
    shown = told(read({**record, "images": ["a.png"], "system": "S"}, "llava_pairs"))
    assert shown == [[("system", "S"), ("user", "image a.png", "\nq"), answer] for _, answer in BOTH]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({**PAIRS["LLaVA"], "score": 3}, "nothing reads the key 'score'"),
        ({**PAIRS["LLaVA"], "answer": "c"}, "nothing reads the key 'answer'"),
        ({**PAIRS["LLaVA"], "messages": chat()[:1]}, "'prompt' beside 'messages'"),
        ({**PAIRS["ms-swift"], "chosen": "a"}, "'chosen' beside 'messages'"),
        ({"chosen": chat(), "rejected": chat("z", "b")}, "differ in more than their last answer"),
        ({"chosen": "a", "rejected": "b", "prompt": []}, "its prompt is empty|write a list"),
    ],
)
def test_pairs_lose_no_key_either(folder, record, fault):
    with pytest.raises(DataError, match=rf"x\.json:record 0.*{fault}"):
        read(record, "llava_pairs")


# Tables ---------------------------------------------------------------------------------------------------------------


def table(rows, **settings):
    Dataset.from_list(rows).to_parquet("t.parquet")
    return sources.build({"name": "parquet", "path": "t.parquet", "cache": "cache", **settings})


def test_a_column_that_nothing_reads_is_refused_when_the_table_is_opened(folder):
    row = {"question": "q", "answer": "a"}
    with pytest.raises(DataError, match=r"t\.parquet: nothing reads the column 'systm' \(did you mean 'system'\?\)"):
        table([row | {"systm": None}, row | {"systm": "S"}])
    assert told(table([row | {"systm": None}, row | {"systm": " "}])[1]) == SAID
    assert told(table([row | {"systm": "S"}], ignore=["systm"])[0]) == SAID
    assert told(table([row | {"systm": "S", "source": "x"}], system_column="systm")[0]) == [("system", "S"), *SAID]


def test_the_system_column_of_a_table_is_read(folder):
    assert told(table([{"system": "S", "messages": chat()}])[0]) == [("system", "S"), *SAID]


def test_keys_of_turns_in_tables_are_refused_by_row(folder):
    rows = [{"messages": chat()}, {"messages": chat(tool_calls=["f"])}]
    source = table(rows)
    assert told(source[0]) == SAID
    with pytest.raises(DataError, match=r"t\.parquet:row 1, turn 1: nothing reads the key 'tool_calls'"):
        source[1]
    assert told(table(rows, ignore=["tool_calls"])[1]) == SAID
    assert told(table([{"messages": [*chat(weight=0), *chat()]}])[0])[1] == ("assistant (given)", "a")


# Tars -----------------------------------------------------------------------------------------------------------------


def tarred(record, *members, **settings):
    with tarfile.open("t.tar", "w") as tar:
        for name, data in [("0.json", json.dumps(record).encode()), *members]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sources.build({"name": "webdataset", "path": "t.tar", **settings})[0]


def test_tars_of_img2dataset_are_read(folder):
    noted = {"key": "0", "url": "http://x/a.png", "status": "success", "error_message": None, "exif": "{}", "width": 8,
             "original_width": 9, "sha256": "00", "caption": "a"}  # fmt: skip
    talk = tarred(noted, ("0.png", (folder / "a.png").read_bytes()), ("0.txt", b"a\n"), ask="q")
    assert [message.text for message in talk.messages] == ["\nq", "a"]
    assert len(talk.visuals) == 1


@pytest.mark.parametrize(
    ("record", "members", "fault"),
    [
        ({"system_prompt": "S", "messages": chat()}, [], r"t\.tar:0: nothing reads the key 'system_prompt'"),
        ({"messages": chat()}, [("0.wav", b"RIFF")], r"t\.tar:0: nothing reads the member 'wav'"),
        ({"messages": chat()}, [("0.txt", b"another")], r"t\.tar:0: 'txt' beside 'messages'"),
        ({"images": ["a.png"], "messages": chat()}, [], r"t\.tar:0: 'images' names 1, but the sample holds 0"),
        (
            {"image": ["a", "b"], "messages": chat()},
            [("0.png", b"x")],
            r"t\.tar:0: 'image' names 2, but the sample holds 1",
        ),
    ],
)
def test_tars_lose_nothing(folder, record, members, fault):
    with pytest.raises(DataError, match=fault):
        tarred(record, *members)


def test_members_of_a_tar_may_be_left_out(folder):
    assert told(tarred({"messages": chat()}, ("0.wav", b"RIFF"), ("0.cls", b""), ignore=["wav"])) == SAID
