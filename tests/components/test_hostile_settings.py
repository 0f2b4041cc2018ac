"""Every setting of every component, given what no setting can be: refused by name, or the component works.

It is tried in a process of its own that may take little more memory than it has, so that a signal, an endless loop or a
huge tensor shows.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

VALUES = (math.nan, math.inf, -math.inf, -1, 0, 10**20, -(10**20), 1e308, True, "5", [], None, "")
NEVER = [repr(value) for value in (math.nan, math.inf, -math.inf, 10**20, -(10**20))]
SPARE_BYTES = 3 << 30
SLOW_S = 20  # of the processor, the first import of a family among it
PROBES = (1, 1.0, [1], [1, 1], [1, 1, 1], [[1]], {}, [{}])
"""Values of the settings that hold numbers, or components with numbers of their own."""
KINDS = {
    "light": ("pooling", "tokenizer", "template", "source", "objective", "projector", "backbone"),
    "encoder": ("encoder",),
}
TOO_LARGE = {
    "projector": [
        {"name": "c_abstractor", "dim": 2**20},
        {"name": "qformer", "dim": 2**16, "heads": 512, "depth": 64},
        {"name": "perceiver", "queries": 2**16, "depth": 64, "heads": 2**14, "head_dim": 2**14},
        {"name": "gated", "expansion": 256.0, "in_dim": 2**20},
    ],
    "encoder": [
        {"name": "clip", "dim": 2**20, "heads": 2**13, "mlp_dim": 2**20, "depth": 64},
        {"name": "dinov3", "dim": 2**20, "heads": 2**13, "mlp_dim": 2**20, "depth": 64},
        {"name": "tiny_conv", "dim": 2**20, "blocks": 64},
    ],
    "backbone": [
        {"name": "qwen2_tiny", "vocab_size": 2**24, "dim": 2**16, "heads": 512, "kv_heads": 512},
        {"name": "causal_lm", "family": "llama", "dim": 2**16, "depth": 64, "heads": 512, "mlp_dim": 2**20},
    ],
}


@pytest.fixture(scope="module", params=KINDS)
def outcomes(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).resolve()), *KINDS[request.param]]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, (child.stdout[-500:], child.stderr[-2000:])
    return [json.loads(line) for line in child.stdout.splitlines()]


def test_nothing_but_our_errors_comes_back_and_soon(outcomes):
    assert len(outcomes) > 1000
    assert [o for o in outcomes if o["foreign"] or o["seconds"] > SLOW_S] == []


def test_what_is_no_number_is_refused_with_the_name_of_its_setting(outcomes):
    hostile = [o for o in outcomes if o["value"] in NEVER]
    assert len(hostile) > 300
    assert [o for o in hostile if o["setting"] not in o["refused"]] == []


def test_every_refusal_names_the_setting(outcomes):
    own = [o for o in outcomes if o["refused"] and o["usual_works"] and o["setting"] != "name"]
    assert [o for o in own if o["setting"] not in o["refused"]] == []


def test_the_check_says_what_building_says(outcomes):
    possible = [o for o in outcomes if "memory of this machine" not in o["refused"]]
    assert [o for o in possible if bool(o["refused"]) != o["faulty"]] == []


def test_sizes_that_together_fill_the_machine_are_refused_with_the_figures(outcomes):
    large = [o for o in outcomes if o["too_large"]]
    assert [o for o in large if "do not fit into the memory of this machine" not in o["refused"]] == []
    assert all("GB" in o["refused"] for o in large)


# The other process --------------------------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a setting: the whole of it, an entry, a setting of a component in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
        return
    yield path
    if isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))


def with_value(where: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    if isinstance(where, dict):
        return {**where, path[0]: with_value(where.get(path[0]), path[1:], value)}
    return [with_value(one, path[1:], value) if i == path[0] else one for i, one in enumerate(where)]


def specs(registry: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(setting, value, spec), from the settings that a component's registration has for tests."""
    from mmblocks.settings import REQUIRED, accepts

    for name in registry:
        entry = registry[name]
        if entry.of is not None:
            continue
        settings = {
            s.name: entry.tiny.get(s.name, None if s.default is REQUIRED else s.default)
            for s in registry.schema(name)
            if any(accepts(s.annotation, probe) for probe in PROBES)
        }
        for setting, usual in settings.items():
            for path in leaves(usual, (setting,)):
                called = next(word for word in reversed(path) if isinstance(word, str))
                for value in VALUES:
                    changed = with_value({setting: usual}, path, value)
                    yield called, value, {"name": name, **entry.tiny, **changed}


@cache
def usual_works(registry: Any, name: str) -> bool:
    """Whether a component needs nothing, such as a file, beside the settings for tests."""
    from mmblocks.model.checks.dry_build import tried

    wired = {word: neighbours()[word] for word in registry.wired}
    return not tried(name, registry, {"name": name, **registry[name].tiny}, **wired).faults


def neighbours() -> dict[str, Any]:
    from mmblocks.components import poolings
    from mmblocks.shapes import Size

    beside = {"view_px": Size(16, 16), "spatial": True, "squash": True, "pooling": poolings.build("none")}
    return {"in_dim": 16, "out_dim": 16, "grid": Size(4, 4), "text_tokenizer": None, **beside}


def tell(kind: str, registry: Any, setting: str, value: Any, spec: dict[str, Any], *, too_large: bool = False) -> None:
    import torch

    from mmblocks.errors import MMBlocksError
    from mmblocks.model.checks.dry_build import tried

    wired = {word: spec.get(word, usual) for word, usual in neighbours().items() if word in registry.wired}
    spec = {word: given for word, given in spec.items() if word not in registry.wired}
    refused = foreign = ""
    faults: list[Any] = []
    start = time.process_time()
    try:
        with torch.device("meta"):
            faults = tried(kind, registry, spec, **wired).faults
        registry.build(spec, **wired)
    except MMBlocksError as error:
        refused = str(error)
    except BaseException as error:
        foreign = f"{type(error).__name__}: {error}"
    seconds = round(time.process_time() - start, 2)
    told = {"spec": str(spec), "setting": setting, "value": repr(value), "refused": refused, "foreign": foreign}
    more = {"faulty": bool(faults), "seconds": seconds, "too_large": too_large}
    more["usual_works"] = not too_large and usual_works(registry, spec["name"])
    print(json.dumps({**told, **more}))


def main(kinds: list[str]) -> None:
    import torch

    from mmblocks.components import REGISTRIES
    from mmblocks.data.sources import sources
    from mmblocks.train.objectives import objectives

    torch.set_num_threads(1)
    registries = {**REGISTRIES, "source": sources, "objective": objectives}
    drawn = {kind: [*specs(registries[kind])] for kind in kinds}
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    for kind in kinds:
        for setting, value, spec in drawn[kind]:
            tell(kind, registries[kind], setting, value, spec)
        for spec in TOO_LARGE.get(kind, ()):
            tell(kind, registries[kind], "", spec, spec, too_large=True)


if __name__ == "__main__":
    main(sys.argv[1:])
