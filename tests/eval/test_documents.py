"""Documents of benchmarks: every published format gives the same document, and every fault names itself."""

import base64
import csv
import io
import json

import pytest
from datasets import Dataset
from PIL import Image

from mmblocks.data.media.images import load_image
from mmblocks.errors import DataError
from mmblocks.eval.documents import DocumentLayout, open_documents
from mmblocks.eval.documents.joined_rows import join_rows
from mmblocks.eval.documents.opening import open_rows
from mmblocks.eval.documents.scienceqa_rows import open_scienceqa_rows

LAYOUT = DocumentLayout(required={"question": ("text",), "answer": ()}, videos=("video",))


def png(colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return file.getvalue()


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_tsv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def opened(path, layout=LAYOUT, split="", **settings):
    return open_documents(open_rows(str(path), split), layout, **settings)


def colour(document, number=0):
    return load_image(document.visuals[number].source).getpixel((0, 0))


@pytest.fixture
def red(tmp_path):
    (tmp_path / "red.png").write_bytes(png())
    return "red.png"


RECORD = {"question_id": 7, "question": "What?", "answer": "red"}


def write_as(form, folder):
    """One document in a published format."""
    (folder / "red.png").write_bytes(png())
    named = {**RECORD, "image": "red.png"}
    if form == "json":
        return write_json(folder / "a.json", [named])
    if form == "json_under_a_key":
        return write_json(folder / "a.json", {"info": {}, "data": [named]})
    if form == "llava_json":
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}]
        return write_json(folder / "a.json", [{"id": 7, "image": "red.png", "conversations": turns}])
    if form == "json_by_id":
        return write_json(folder / "a.json", {"7": {k: v for k, v in named.items() if k != "question_id"}})
    if form == "jsonl":
        return write_lines(folder / "a.jsonl", [{**named, "text": "What?"}])
    if form == "tsv_base64":
        row = {"index": 7, "question": "What?", "answer": "red", "image": base64.b64encode(png()).decode()}
        return write_tsv(folder / "a.tsv", [row])
    if form == "tsv_image_path":
        return write_tsv(
            folder / "a.tsv", [{"index": 7, "image_path": "red.png", "question": "What?", "answer": "red"}]
        )
    if form == "csv":
        return write_tsv(folder / "a.csv", [named])
    rows = [{**RECORD, "image": {"bytes": png(), "path": None}}]
    if form == "parquet":
        Dataset.from_list(rows).to_parquet(folder / "a.parquet")
        return folder / "a.parquet"
    if form == "shards":
        (folder / "hub/data").mkdir(parents=True)
        Dataset.from_list(rows).to_parquet(folder / "hub/data/test-00000-of-00001.parquet")
        return folder / "hub"
    Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved" if form == "saved" else next((folder / "saved").glob("*.arrow"))


FORMS = [
    "json",
    "llava_json",
    "json_under_a_key",
    "json_by_id",
    "jsonl",
    "tsv_base64",
    "tsv_image_path",
    "csv",
    "parquet",
    "shards",
]


@pytest.mark.parametrize("form", [*FORMS, "saved", "arrow"])
def test_every_published_format_gives_the_same_document(form, tmp_path):
    (document,) = opened(write_as(form, tmp_path))
    assert (document.key, document.fields["question"], document.fields["answer"]) == ("7", "What?", "red")
    assert colour(document) == (255, 0, 0)
    assert document.cluster
    assert "image" not in document.fields


# Formats --------------------------------------------------------------------------------------------------------------


def test_an_image_cell_may_hold_the_index_of_the_row_that_has_the_image(tmp_path):
    image = base64.b64encode(png("blue")).decode()
    rows = [
        {"index": 1, "image": image, "question": "a\tb\nc", "answer": "x"},
        {"index": 1000001, "image": "1", "question": "d", "answer": "y"},
    ]
    first, second = opened(write_tsv(tmp_path / "a.tsv", rows))
    assert colour(second) == (0, 0, 255)
    assert first.fields["question"] == "a\tb\nc"
    assert second.where.endswith("a.tsv:line 4")  # the first record takes lines 2 and 3
    assert first.cluster == second.cluster


def test_an_image_cell_may_hold_several_images(tmp_path):
    images = str([base64.b64encode(png(one)).decode() for one in ("red", "blue")])
    (document,) = opened(write_tsv(tmp_path / "a.tsv", [{"index": 1, "image": images, "question": "a", "answer": "x"}]))
    assert [colour(document, i) for i in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


def test_an_image_cell_may_hold_a_long_path(tmp_path):
    name = f"{'x' * 80}.png"
    (tmp_path / name).write_bytes(png())
    (document,) = opened(write_tsv(tmp_path / "a.csv", [{"index": 1, "image": name, "question": "a", "answer": "x"}]))
    assert document.visuals[0].source == tmp_path / name


def test_numbered_images_are_read_in_the_order_of_their_numbers(tmp_path):
    row = {**RECORD, **{f"image_{i}": None for i in range(11)}}
    row["image_10"], row["image_2"] = [{"bytes": png(one), "path": None} for one in ("blue", "red")]
    Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")
    layout = DocumentLayout(required={"question": ()}, images=("image_*",))
    (document,) = opened(tmp_path / "a.parquet", layout)
    assert [colour(document, i) for i in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    assert document.fields == RECORD


def test_a_folder_with_several_splits_needs_a_split(tmp_path):
    for split in ("test", "val"):
        Dataset.from_list([{**RECORD, "question": split}]).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    layout = DocumentLayout(required={"question": ()}, needs_visual=False)
    assert [one.fields["question"] for one in opened(tmp_path, layout, "val")] == ["val"]
    with pytest.raises(DataError, match="several splits; write split= one of test, val"):
        opened(tmp_path, layout)
    with pytest.raises(DataError, match="no split 'train'; write split= one of test, val"):
        opened(tmp_path, layout, "train")


def test_the_folder_of_scienceqa_is_read_by_split(tmp_path):
    problem = {"question": "What?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None}
    write_json(tmp_path / "problems.json", {"3": {**problem, "image": "image.png"}, "5": problem})
    write_json(tmp_path / "pid_splits.json", {"test": ["5", "3", "9"], "val": []})
    (tmp_path / "images/test/3").mkdir(parents=True)
    (tmp_path / "images/test/3/image.png").write_bytes(png())
    layout = DocumentLayout(required={"question": ()}, needs_visual=False)
    documents = open_documents(open_scienceqa_rows(tmp_path, "test"), layout)
    assert documents.keys == ["5", "3", "9"]
    assert documents[0].visuals == ()
    assert colour(documents[1]) == (255, 0, 0)
    with pytest.raises(DataError, match=r"problem 9: pid_splits.json lists it, but .*problems.json does not hold it"):
        documents[2]
    with pytest.raises(DataError, match="no split 'train'; write split= one of test, val"):
        open_scienceqa_rows(tmp_path, "train")


def test_questions_are_joined_with_the_answers_of_another_file(tmp_path, red):
    questions = write_lines(tmp_path / "q.jsonl", [{"question_id": i, "image": red, "text": "What?"} for i in (1, 2)])
    answers = write_json(tmp_path / "a.json", {"annotations": [{"question_id": 1, "answer": "red"}]})
    rows = join_rows(open_rows(str(questions)), open_rows(str(answers)), [("question_id", "question_id")])
    documents = open_documents(rows, LAYOUT)
    assert documents[0].fields["answer"] == "red"
    with pytest.raises(DataError, match=r"q.jsonl:record 1: question_id=2 stands in no record of .*a.json"):
        documents[1]


@pytest.mark.parametrize("name", ["a.mp4", "a", "deep/a", "v_a"])
def test_clips_are_found_without_suffix_and_prefix(name, tmp_path):
    (tmp_path / "clips/deep").mkdir(parents=True)
    stored = {"deep/a": "deep/a.mkv", "a": "v_a.webm"}.get(name, "v_a.mp4" if name == "v_a" else "a.mp4")
    (tmp_path / "clips" / stored).write_bytes(b"not opened yet")
    data = write_json(tmp_path / "a.json", [{**RECORD, "video": name}])
    (document,) = opened(data, videos=str(tmp_path / "clips"), video_prefix="v_")
    (visual,) = document.visuals
    assert (visual.kind, visual.source) == ("video", tmp_path / "clips" / stored)


def test_a_clip_in_a_sub_folder_is_found_by_its_bare_name_where_it_is_the_only_one(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.mp4").write_bytes(b"1")
    data = write_json(tmp_path / "a.json", [{**RECORD, "video": "a"}])
    assert opened(data)[0].visuals[0].source == tmp_path / "x/a.mp4"
    (tmp_path / "y").mkdir()
    (tmp_path / "y/a.mp4").write_bytes(b"1")
    with pytest.raises(DataError, match=r"'a' may be x/a.mp4 or y/a.mp4 in .*; write the sub-folder too"):
        opened(data)[0]


def test_a_folder_of_frames_is_a_clip(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/1.png").write_bytes(png())
    (document,) = opened(write_json(tmp_path / "a.json", [{**RECORD, "video": "clip"}]))
    assert document.visuals[0].source == tmp_path / "clip"


# Faults ---------------------------------------------------------------------------------------------------------------


def spoil(case, folder):
    """A file of one broken document and one good one, and what the error says."""
    good, bad = {**RECORD, "image": "red.png"}, {**RECORD, "question_id": 8, "image": "red.png"}
    (folder / "red.png").write_bytes(png())
    if case == "missing image":
        return {**bad, "image": "blue.png"}, good, r"record 0: the image 'blue.png' is not in .*add the file"
    if case == "no image":
        return {**bad, "image": None}, good, r"record 0: it names no image or video \(image or images"
    if case == "no image named nan":
        return {**bad, "image": "nan"}, good, "record 0: it names no image or video"
    if case == "empty image":
        (folder / "empty.png").write_bytes(b"")
        return {**bad, "image": "empty.png"}, good, r"record 0: 'image': .*empty.png: the file is empty"
    if case == "no image file":
        (folder / "text.png").write_text("what")
        return {**bad, "image": "text.png"}, good, r"record 0: 'image': .*text.png: not an image of a known format"
    if case == "missing clip":
        (folder / "cat.mp4").write_bytes(b"1")
        return (
            {**bad, "video": "cta"},
            good,
            r"record 0: the video 'cta' is not in .* Did you mean 'cat'\? It holds 1 file",
        )
    if case == "empty clip":
        (folder / "empty.mp4").write_bytes(b"")
        return {**bad, "video": "empty"}, good, r"record 0: 'video': .*empty.mp4: the file is empty"
    if case == "url":
        return {**bad, "image": "https://a.b/c.png"}, good, "record 0: https://a.b/c.png: mmblocks opens no URLs"
    assert case == "missing field"
    return {**bad, "answer": None}, good, "record 0: the field 'answer' holds nothing; write it, or remove the record"


CASES = ["missing image", "no image", "no image named nan", "empty image", "no image file"]
CASES += ["missing clip", "empty clip", "url", "missing field"]


@pytest.mark.parametrize("case", CASES)
def test_a_broken_document_names_itself_and_the_others_are_read(case, tmp_path):
    bad, good, message = spoil(case, tmp_path)
    documents = opened(write_json(tmp_path / "a.json", [bad, good]))
    with pytest.raises(DataError, match=message):
        documents[0]
    assert documents[1].key == "7"


def test_a_line_that_is_no_json_is_a_fault_of_its_document(tmp_path, red):
    path = write_lines(tmp_path / "a.jsonl", [{**RECORD, "image": red}])
    path.write_text(path.read_text() + "{broken\n")
    documents = opened(path)
    assert len(documents) == 2
    with pytest.raises(DataError, match=r"a.jsonl:record 1: not JSON"):
        documents[1]


def test_turns_without_a_question_are_a_fault_of_their_document(tmp_path, red):
    turns = [{"from": "human", "value": "What?"}]
    documents = opened(
        write_json(tmp_path / "a.json", [{"id": i, "image": red, "conversations": turns[i:]} for i in (0, 1)])
    )
    with pytest.raises(DataError, match=r"record 0: 'conversations' holds no question with an answer; write both"):
        documents[0]
    with pytest.raises(DataError, match=r"record 1: 'conversations' is .*; write a list with at least one turn"):
        documents[1]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("5", "line 2: its image is that of the row with the index 5, but no such row holds one; add it"),
        ("AAAA" * 30, "line 2: the image cell holds 120 characters that are no base64 of an image"),
        ("there.png", r"line 2: the image 'there.png' is not in"),
    ],
)
def test_an_image_cell_without_an_image_is_a_fault(cell, message, tmp_path):
    row = {"index": 1, "question": "q", "answer": "a"}
    documents = opened(write_tsv(tmp_path / "a.tsv", [{**row, "image": cell}]))
    with pytest.raises(DataError, match=message):
        documents[0]


def test_a_row_with_other_cells_than_columns_is_a_fault(tmp_path):
    (tmp_path / "a.tsv").write_text("index\tquestion\tanswer\n1\tq\ta\n2\tq\n")
    documents = opened(tmp_path / "a.tsv", DocumentLayout(required={"question": ()}, needs_visual=False))
    assert documents[0].key == "1"
    with pytest.raises(DataError, match=r"a.tsv:line 3: 2 cells, but the first line names 3 columns: 2\tq"):
        documents[1]


def test_a_file_of_another_format_shows_its_first_record(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"instruction": "Do it.", "output": "Done."}])
    with pytest.raises(
        DataError,
        match=r"a.jsonl:record 0: there is no question, answer; expected are records with question or text, answer, "
        r"but the first is \{instruction: 'Do it.', output: 'Done.'\}",
    ):
        opened(path)


def test_a_table_that_is_none_shows_its_first_line(tmp_path):
    (tmp_path / "a.tsv").write_text("what,is,this\n1,2,3\n")
    with pytest.raises(
        DataError, match=r"a.tsv:line 2: there is no question, answer; .* but the first is {what,is,this: '1,2,3'}"
    ):
        opened(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_bytes(b"question\tanswer\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"b.tsv: not UTF-8 .*: b'\\xff\\xfe\\n'; save it as UTF-8"):
        opened(tmp_path / "b.tsv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": 1}', "it holds an object with the keys a; documents are a list of records"),
        ("a.json", "[]", "there are no records"),
        ("a.json", "id,question\n1,what\n", r"not JSON: .* Its first line: 'id,question'"),
        ("a.jsonl", "id: 1\n", r"record 0: not JSON: .* Its first line: 'id: 1'"),
        ("a.json", '["text"]', "record 0: a document is an object with its fields, not 'text'"),
        ("a.jsonl", "", "there are no records"),
        ("a.txt", "x", "nothing reads documents from a file of the suffix '.txt'"),
        ("a.tsv", "", "it is empty; its first line names the columns"),
        ("a.parquet", "x", "cannot be read as parquet"),
    ],
)
def test_a_file_without_documents_says_so(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / name)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        opened(tmp_path / "a.json")


@pytest.mark.parametrize("form", ["json", "tsv", "parquet"])
def test_two_documents_of_one_key_are_an_error(form, tmp_path, red):
    rows = [{**RECORD, "image": red}, {**RECORD, "question_id": 9, "image": red}, {**RECORD, "image": red}]
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        (write_json if form == "json" else write_tsv)(path, rows)
    with pytest.raises(
        DataError, match=r"the key question_id = '7' stands also in .*; documents need keys of their own"
    ):
        opened(path)


def test_documents_without_an_id_are_numbered(tmp_path, red):
    documents = opened(write_json(tmp_path / "a.json", [{"question": "q", "answer": "a", "image": red}] * 2))
    assert [one.key for one in documents] == ["#0", "#1"]
