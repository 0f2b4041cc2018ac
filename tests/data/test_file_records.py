"""Records by their places in a file: the same values and the same errors as of the whole file, and never those of another one."""

import json
import os
import random
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from mmblocks.data.records import file_records
from mmblocks.data.records.file_records import FileRecords, find_element_places, find_line_places, open_file_records
from mmblocks.data.records.json_records import open_json, parse_json
from mmblocks.errors import DataError

WINDOWS = (1, 2, 3, 5, 8, 1 << 22)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Places of every file are kept here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_records, "KEPT_FROM_BYTES", 0)
    return tmp_path / "cache" / "mmblocks" / "records"


def write(folder, content, name="r.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


# The same as the whole file -------------------------------------------------------------------------------------------

LISTS = (
    "[]",
    " \n[ \t]\r\n",
    "[1]",
    "[12,-3.5e7,true,null,NaN,Infinity]",
    '[{"a": 1}]',
    '[{"a": "]},{["}, {"b": "\\"]\\\\"}, "\\\\", "x\\\\\\"y, ]"]',
    "[[1, [2, 3]], [], {}, [[]]]",
    '\n[\n  {"a": 1},\n  {"a": 2}\n]\n\n',
    '[{"é": "猫"}, "🐈", "\\ud83d\\udc08", "\\ud83d", {"猫": ["é,]"]}]',
    '["\ud83d", "a"]',
    '\ufeff[{"a": 1}, {"b": 2}]',
    '[{"a": 1, "a": 2}, {"a": {"b": 1, "b": 2}}]',
    '["\u2028", "\u00a0", "\x7f"]',
    "[" + ", ".join(["[" * 40 + "]" * 40] * 3) + "]",
)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("content", LISTS, ids=ascii)
def test_a_list_is_read_element_by_element(tmp_path, monkeypatch, content, window):
    monkeypatch.setattr(file_records, "WINDOW_BYTES", window)
    path = write(tmp_path, content)
    records = open_json(path)
    assert isinstance(records, FileRecords)
    assert repr([records[i] for i in range(len(records))]) == repr(parse_json(path.read_bytes(), "x"))


def make_value(rng, depth=0):
    kind = rng.randrange(7 if depth < 4 else 5)
    if kind >= 5:
        values = [make_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return values if kind == 5 else {make_text(rng): value for value in values}
    return (make_text(rng), rng.randrange(-(10**12), 10**12), rng.random() * 10 ** rng.randrange(-9, 9), None, True)[
        kind
    ]


def make_text(rng):
    return "".join(
        rng.choices(["a", '"', "\\", "[", "]", "{", "}", ",", ":", "\n", "é", "猫", "🐈", "\x00"], k=rng.randrange(8))
    )


@pytest.mark.parametrize("seed", range(40))
def test_any_list_is_read_as_by_json(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    values = [make_value(rng) for _ in range(rng.randrange(12))]
    text = json.dumps(values, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 0, 3)))
    monkeypatch.setattr(file_records, "WINDOW_BYTES", rng.choice(WINDOWS))
    records = open_json(write(tmp_path, text))
    assert [records[i] for i in range(len(records))] == values


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "content",
    [
        "[1, 2",
        "[1 2]",
        "[1,]",
        "[,1]",
        "[",
        "[1]]",
        "[1] [2]",
        '["a]',
        '[{"a": 1} {"b": 2}]',
        '[{"a": 1,}]',
        "[tru]",
        "[01]",
        '["\t"]',
        b'["\xff"]',
        b"[\x8f",
        b'["a", "\xe7\x8c',
        "[" * 100_000,
        "[1" + "0" * 5000 + "]",
        '\ufeff\ufeff["a"]',
        '{"a": ',
    ],
    ids=lambda content: ascii(content[:20]),
)
def test_a_mistake_in_a_list_is_told_as_of_the_whole_file(tmp_path, monkeypatch, content, window):
    monkeypatch.setattr(file_records, "WINDOW_BYTES", window)
    path = write(tmp_path, content)
    with pytest.raises(DataError) as whole:
        parse_json(path.read_bytes(), str(path))
    with pytest.raises(DataError) as found:
        open_json(path)
    assert str(found.value) == str(whole.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be"])
def test_a_list_in_another_encoding_is_read_whole(tmp_path, encoding):
    assert open_json(write(tmp_path, '[{"a": "é"}, 2]'.encode(encoding))) == [{"a": "é"}, 2]


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
@pytest.mark.parametrize(
    ("content", "values"),
    [
        ('{"a": 1}\n\n \t\n{"b": "}\\n{"}\r\n{"c": 3}', [{"a": 1}, {"b": "}\n{"}, {"c": 3}]),
        ("[1]\n2 ", [[1], 2]),
        ('\ufeff\n\ufeff{"a": 1}\n[2]\n', [{"a": 1}, [2]]),
    ],
)
def test_lines_are_records(tmp_path, name, content, values):
    records = open_json(write(tmp_path, content, name))
    assert [records[i] for i in range(len(records))] == values


def test_a_line_that_is_no_json_is_named(tmp_path):
    records = open_json(write(tmp_path, '{"a": 1}\n{"b": }\n', "r.jsonl"))
    with pytest.raises(DataError, match=r"r\.jsonl:record 1: not JSON: Expecting value: line 1 column 7"):
        records[1]


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_a_record_takes_few_bytes(tmp_path, name):
    lines = [json.dumps({"id": i, "conversations": [{"from": "human", "value": "red " * 20}]}) for i in range(20_000)]
    path = write(tmp_path, "\n".join(lines) if name == "r.jsonl" else f"[{', '.join(lines)}]", name)
    open_json(path)
    tracemalloc.start()
    try:
        records = open_json(path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(records) == 20_000
    assert held / len(records) <= 20  # two places of 8 bytes, and what an array has in reserve


# Kept places ----------------------------------------------------------------------------------------------------------


class Finder:
    """Finds places, and counts how often it was asked."""

    def __init__(self, find=find_line_places):
        self.find, self.asked = find, 0

    def __call__(self, file):
        self.asked += 1
        return self.find(file)


def read_all(records):
    return [records[i] for i in range(len(records))]


@pytest.mark.parametrize("find", [find_line_places, find_element_places])
def test_places_are_found_once(tmp_path, cache, find):
    finder, content = Finder(find), "[1,\n2]" if find is find_element_places else "1\n2\n"
    path = write(tmp_path, content)
    first, second = (open_file_records(path, finder, parse_json) for _ in range(2))
    assert finder.asked == 1
    assert len(list(cache.iterdir())) == 1
    assert read_all(first) == read_all(second) == [1, 2]


def edit_in_place(path):
    """Another content of the same size, with the times of the old one."""
    seen = path.stat()
    path.write_bytes(b"7 \n8\n")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def replace_with_another(path):
    other = path.with_name("other")
    other.write_bytes(b"7\n8 \n")
    other.replace(path)


def append(path):
    with path.open("ab") as file:
        file.write(b"3\n")


@pytest.mark.parametrize("change", [edit_in_place, replace_with_another, append])
def test_places_of_another_content_are_never_used(tmp_path, cache, change):
    finder, path = Finder(), write(tmp_path, "1\n 2\n")
    open_file_records(path, finder, parse_json)
    change(path)
    records = open_file_records(path, finder, parse_json)
    assert finder.asked == 2
    assert read_all(records) == [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    records = open_json(write(tmp_path, "[1, 2]"))
    write(tmp_path, "[1, 2, 3]")
    with pytest.raises(DataError, match=r"r\.json: it has changed since it was opened; start again"):
        records[1]


@pytest.mark.parametrize(
    "spoil", [lambda kept: kept.write_bytes(kept.read_bytes()[:-3]), lambda kept: kept.write_bytes(b"x")]
)
def test_spoilt_places_are_found_again(tmp_path, cache, spoil):
    finder, path = Finder(), write(tmp_path, "1\n2\n")
    open_file_records(path, finder, parse_json)
    (kept,) = cache.iterdir()
    spoil(kept)
    assert read_all(open_file_records(path, finder, parse_json)) == [1, 2]
    assert read_all(open_file_records(path, finder, parse_json)) == [1, 2]
    assert finder.asked == 2


def test_where_nothing_can_be_written_places_are_found_by_each(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path, "", "no_folder")))
    finder, path = Finder(), write(tmp_path, "1\n2\n")
    for asked in (1, 2):
        assert read_all(open_file_records(path, finder, parse_json)) == [1, 2]
        assert finder.asked == asked


def test_small_files_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_json(write(tmp_path, "[1, 2]"))
    assert not (tmp_path / "cache").exists()


def test_processes_that_find_places_at_once_all_read_the_same(tmp_path, cache):
    values = list(range(3000))
    path = write(tmp_path, json.dumps(values))
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as processes:
        assert list(processes.map(read_file, [path] * 12)) == [values] * 12
    assert len(list(cache.iterdir())) == 1


def read_file(path):
    return read_all(open_json(path))
