"""From a decoded image to normalised tiles, AnyRes of at most nine, beside LLaVA-OneVision's processors in transformers; from
a JPEG to one view, decoded whole or reduced.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from mmblocks.components import tokenizers
from mmblocks.conversation import Visual
from mmblocks.data.media.pixels import render_views
from mmblocks.data.media.visuals import render_visual_plan
from mmblocks.geometry.views import make_squashed_view
from mmblocks.image_reading import ImageReading, Resizer
from mmblocks.shapes import Size, VisualPlan, VisualShape
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, require_equal

NAME = "images"
VIEW = Size(384, 384)
PHOTO = Size(3000, 4000)
SIZES = (Size(480, 640), Size(1080, 1920), Size(1500, 2000))


def measure(run: Run) -> Iterator[Row]:
    """Each way to resize beside the processor that resizes likewise; PIL, which is the default, also beside the other."""
    theirs = {"torchvision": LlavaOnevisionImageProcessor(), "PIL": LlavaOnevisionImageProcessorPil()}
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (theirs["PIL"].image_mean, theirs["PIL"].image_std))
    spec = {"name": "anyres", "pinpoints": "(1x1),...,(6x6)", "max_tiles": 9, "rounding": "transformers"}
    tokenizer: Any = tokenizers.build(spec, view_px=VIEW, grid=Size(27, 27), spatial=True)
    for size in SIZES[: 1 if run.tiny else None]:
        run.require_time(before=str(size))
        image, plan = draw_image(size), tokenizer.plan(VisualShape("image", size))

        def prepare(resizer: Resizer, image: Image.Image = image, plan: Any = plan) -> Tensor:
            views = render_views(image, plan.unique_views, (0, 0, 0), resizer)
            return views.float().sub_(255 * mean).mul_(1 / (255 * std))

        def ask(processor: Any, image: Image.Image = image) -> Tensor:
            return processor(image, return_tensors="pt")["pixel_values"][0]

        ways: list[tuple[Resizer, str, list[str]]] = [("torch", "torchvision", ["torchvision"])]
        for resizer, alike, beside in [*ways, ("pillow", "PIL", ["PIL", "torchvision"])]:
            error = require_equal(f"{size} by {resizer}", prepare(resizer), ask(theirs[alike]))
            peers = [Peer("as shipped", name, lambda _, name=name: ask(theirs[name])) for name in beside]
            scenario, quantity = f"an image of {size}, resized by {resizer}", f"{len(plan.unique_views)} views"
            yield from compare_times(
                run, NAME, scenario, quantity, lambda _, resizer=resizer: prepare(resizer), peers, error=error
            )
    yield from _measure_photo(run, Size(480, 640) if run.tiny else PHOTO)


def _measure_photo(run: Run, size: Size) -> Iterator[Row]:
    file = io.BytesIO()
    draw_image(size).save(file, "JPEG", quality=90)
    visual = Visual("image", file.getvalue())
    plan = VisualPlan((make_squashed_view(0, size, VIEW),), 729)

    def render(decode: str) -> Tensor:
        images = ImageReading.from_dict({"resize": "torch", "decode": decode})
        return render_visual_plan(visual, plan, (0, 0, 0), images=images)

    yield from compare_times(
        run,
        NAME,
        f"a JPEG of {size}, decoded at a share of its sides",
        f"one view of {VIEW}",
        lambda _: render("reduced"),
        [Peer("naive", "decoded whole", lambda _: render("whole"))],
        error=(render("reduced").float() - render("whole")).abs().mean().item() / 255,
    )


def draw_image(size: Size) -> Image.Image:
    """A soft random texture."""
    noise = np.random.default_rng(0).integers(0, 256, (size.height // 8, size.width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size.width, size.height), Image.Resampling.BICUBIC)
