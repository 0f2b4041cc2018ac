"""Tables of what was found: written whole, replaced by suite, size and device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmblocks.errors import DataError
from tests.bench.suites import rows
from tests.bench.suites.rows import Row, read, write

ONE = Row("prefill", "video", "tiny", "cpu", "float32", "time", "s", ours=0.25, peer=0.5, ratio=2.0, settings="a, b")


def test_a_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [ONE])
    assert read(tmp_path / "a.csv") == [ONE]


def test_rows_of_the_same_suite_size_and_device_are_replaced_and_others_kept(tmp_path: Path) -> None:
    others = [replace(ONE, suite="train"), replace(ONE, size="small"), replace(ONE, device="cuda")]
    write(tmp_path / "a.csv", [ONE, replace(ONE, scenario="base"), *others])
    newer = replace(ONE, ours=0.125, ratio=4.0)
    write(tmp_path / "a.csv", [newer])
    found = read(tmp_path / "a.csv")
    assert len(found) == 4
    assert newer in found
    assert all(row in found for row in others)


def test_rows_of_one_suite_keep_their_order(tmp_path: Path) -> None:
    found = [replace(ONE, scenario=name) for name in ("video", "anyres", "images")]
    write(tmp_path / "a.csv", found)
    assert read(tmp_path / "a.csv") == found


def test_another_table_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("model,value\nx,1\n")
    with pytest.raises(DataError, match="a table of benchmarks has"):
        write(tmp_path / "a.csv", [ONE])
    assert (tmp_path / "a.csv").read_text() == "model,value\nx,1\n"


def test_rows_say_where_they_come_from() -> None:
    assert ONE.machine
    assert "torch=" in ONE.versions
    assert "transformers=" in ONE.versions
    assert ONE.date.count("-") == 2


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "__file__", str(tmp_path / "rows.py"))
    assert rows.find_commit.__wrapped__() is None
