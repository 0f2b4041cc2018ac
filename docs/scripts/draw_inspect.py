"""Draw docs/images/inspect.png: what `mmblocks inspect --record` draws of a picture and of a clip.

python docs/scripts/draw_inspect.py
"""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from mmblocks.components import poolings, tokenizers
from mmblocks.conversation import Visual
from mmblocks.data.drawing import draw_visual
from mmblocks.data.inspection import ShownVisual
from mmblocks.data.media import shape_of
from mmblocks.data.tinyworld.draw import picture
from mmblocks.data.tinyworld.scene import Scene, sample_still
from mmblocks.shapes import RoutedPlan, Size

FIGURE = Path(__file__).parents[1] / "images/inspect.png"
PICTURE = Size(700, 1000)
FRAME, FRAMES, FPS = Size(240, 320), 60, 10.0
WIRED = {"view_px": Size(384, 384), "grid": Size(27, 27), "spatial": True}


def main() -> None:
    """Write the figure."""
    figure().save(FIGURE, optimize=True)


def figure() -> Image.Image:
    """The picture's panels above those of the clip, in few colours."""
    image, clip = draw_visual(still()), draw_visual(moving())
    sheet = Image.new("RGB", (max(image.width, clip.width), image.height + clip.height), "white")
    sheet.paste(image, (0, 0))
    sheet.paste(clip, (0, image.height))
    return sheet.quantize(64)


def still() -> ShownVisual:
    """A picture as LLaVA-OneVision shows it: the whole of it, then tiles on the canvas that suits it."""
    visual = Visual("image", picture(scene(), random.Random(1), PICTURE))
    shape = shape_of(visual)
    plan = tokenizers.build("anyres_max", **WIRED).plan(shape)
    return ShownVisual(visual, shape, RoutedPlan("image", plan))


def moving() -> ShownVisual:
    """Four frames of a clip of six seconds, each cropped as CLIP's processor does."""
    frame = np.asarray(picture(scene(), random.Random(1), FRAME))
    frames = np.stack([np.roll(frame, 5 * n, axis=1) for n in range(FRAMES)])
    visual = Visual("video", frames, fps=FPS)
    shape = shape_of(visual)
    settings = {"name": "frames", "max_frames": 4}
    tokenizer = tokenizers.build(settings, **WIRED, squash=False, pooling=poolings.build("bilinear"))
    return ShownVisual(visual, shape, RoutedPlan("video", tokenizer.plan(shape)))


def scene() -> Scene:
    return sample_still(random.Random(4), "train", (5,))


if __name__ == "__main__":
    main()
