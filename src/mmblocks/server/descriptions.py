"""What the page is told: what a model is made of, and what it sees of images and videos."""

from __future__ import annotations

from collections.abc import Mapping

from mmblocks.model.onevision import OneVision
from mmblocks.registry import Spec, split_spec
from mmblocks.server.preparation import PreparedPrompt
from mmblocks.shapes import SCENARIOS, Size, View


def describe_model(model: OneVision, name: str, limits: Mapping[str, object], *, needs_key: bool) -> dict:
    """Of `GET /api/model`."""
    spec = model.spec
    parts = {kind: _format_component(getattr(spec, kind)) for kind in ("encoder", "projector", "pooling", "backbone")}
    tokenizers = {
        f"{scenario.replace('_', '-')} tokenizer": _format_component(spec.tokenizer[scenario]) for scenario in SCENARIOS
    }
    return {
        "name": name,
        "parts": {**parts, **tokenizers, "template": _format_component(spec.template)},
        "max_tokens": model.backbone.max_tokens,
        "scenarios": list(SCENARIOS),
        "limits": limits,
        "needs_key": needs_key,
    }


def describe_plan(prompt: PreparedPrompt) -> dict:
    """Of `POST /api/plan`: the tokens of a prompt, and what each view shows of its image or frame."""
    visuals = []
    for shape, routed in zip(prompt.shapes, prompt.encoded.plans, strict=True):
        views = [{"frame": v.frame, "box": find_shown_box(v, shape.size)} for v in routed.plan.unique_views]
        visuals.append(
            {
                "kind": shape.kind,
                "size": list(shape.size),
                "frames": shape.num_frames,
                "scenario": routed.scenario,
                "tokens": routed.plan.num_tokens,
                "views": views,
            }
        )
    return {"prompt_tokens": len(prompt.encoded), "visuals": visuals}


def find_shown_box(view: View, size: Size) -> list[int]:
    """[top, left, height, width]: what a view shows of a frame of this size, in its pixels, without what was added to it."""
    box = []
    for axis in (0, 1):
        # From the canvas to the resized frame in its middle, to the frame, to the image in the middle of the frame.
        begin = view.window[axis] - (view.canvas[axis] - view.resized[axis]) // 2
        scale, added = view.framed[axis] / view.resized[axis], (view.framed[axis] - size[axis]) // 2
        first = round(begin * scale) - added
        last = round((begin + view.window[axis + 2]) * scale) - added
        first, last = (min(max(edge, 0), size[axis]) for edge in (first, last))
        box.append((first, last - first))
    (top, height), (left, width) = box
    return [top, left, height, width]


def _format_component(spec: Spec) -> str:
    """A component with those of its settings that are plain values; what has a slash may be a path of this machine."""
    name, settings = split_spec(spec)
    shown = {key: value for key, value in settings.items() if isinstance(value, str | int | float) and value != ""}
    plain = [f"{key}={value}" for key, value in shown.items() if not isinstance(value, str) or "/" not in value]
    return f"{name} ({', '.join(plain)})" if plain else name
