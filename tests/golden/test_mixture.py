"""What LLaVA-NeXT's mixture YAML keeps of a file, and what we keep of it.

data.json holds which records github.com/LLaVA-VL/LLaVA-NeXT at df17966 (llava/train/train.py) keeps of a data set of n
records under each sampling_strategy.
"""

import json
from pathlib import Path

import pytest

from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError

CASES = [
    pytest.param(case, id=f"{case['n']}{case['ext']}-{case['strategy']}")
    for case in json.loads((Path(__file__).parent / "data.json").read_text())["mixture"]
]
# The original's slice [-0:] is everything; ours keeps as many as were asked for.
KEEPS_NONE = ("end:0", "end:0%")
# What the original does not understand it takes for "all", without a word; ours refuses it.
REFUSED = ("first", "last:3")


def kept(folder, case):
    """Numbers of the records that are kept."""
    records = [
        {"id": i, "conversations": [{"from": "human", "value": str(i)}, {"from": "gpt", "value": "x"}]}
        for i in range(case["n"])
    ]
    lines = [json.dumps(record) for record in records]
    text = "\n".join(lines) if case["ext"] == "jsonl" else json.dumps(records)
    (folder / f"set.{case['ext']}").write_text(text)
    (folder / "mixture.yaml").write_text(
        f"datasets:\n  - json_path: set.{case['ext']}\n    sampling_strategy: {case['strategy']}\n"
    )
    source = sources.build("llava_mixture", path=str(folder / "mixture.yaml"))
    return [int(source[i].messages[0].text) for i in range(len(source))]


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0]["strategy"] not in (*KEEPS_NONE, *REFUSED)])
def test_the_records_of_the_original_are_kept(tmp_path, case):
    got = kept(tmp_path, case)
    assert (len(got), got[:3], got[-3:]) == (case["kept"], case["first"], case["last"])
    assert got == list(range(got[0], got[-1] + 1)) if got else case["kept"] == 0


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0]["strategy"] in KEEPS_NONE])
def test_the_last_none_are_none(tmp_path, case):
    assert case["kept"] == case["n"]
    assert kept(tmp_path, case) == []


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0]["strategy"] in REFUSED])
def test_what_is_not_understood_is_refused(tmp_path, case):
    assert case["kept"] == case["n"]
    with pytest.raises(ConfigError, match=rf"datasets.0.sampling_strategy: '{case['strategy']}' chooses no records"):
        kept(tmp_path, case)


def test_every_case_is_tried():
    assert len(CASES) == 51
