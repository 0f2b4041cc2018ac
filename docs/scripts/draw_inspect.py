"""Draw docs/images/inspect.png: what `mmblocks inspect --record` draws of a draw_image and of a clip.

python docs/scripts/draw_inspect.py
"""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from mmblocks.components import poolings, tokenizers
from mmblocks.conversation import Visual
from mmblocks.data.inspect.drawing import draw_visual
from mmblocks.data.inspect.figures import InspectedVisual
from mmblocks.data.media.visuals import read_visual_shape
from mmblocks.data.tinyworld.draw import draw_image
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


def still() -> InspectedVisual:
    """A draw_image as LLaVA-OneVision shows it: the whole of it, then tiles on the canvas that suits it."""
    visual = Visual("image", draw_image(scene(), random.Random(1), PICTURE))
    shape = read_visual_shape(visual)
    plan = tokenizers.build("anyres_max", **WIRED).plan(shape)
    return InspectedVisual(visual, shape, RoutedPlan("image", plan))


def moving() -> InspectedVisual:
    """Four frames of a clip of six seconds, each cropped as CLIP's processor does."""
    frame = np.asarray(draw_image(scene(), random.Random(1), FRAME))
    frames = np.stack([np.roll(frame, 5 * n, axis=1) for n in range(FRAMES)])
    visual = Visual("video", frames, fps=FPS)
    shape = read_visual_shape(visual)
    settings = {"name": "frames", "max_frames": 4}
    tokenizer = tokenizers.build(settings, **WIRED, squash=False, pooling=poolings.build("bilinear"))
    return InspectedVisual(visual, shape, RoutedPlan("video", tokenizer.plan(shape)))


def scene() -> Scene:
    return sample_still(random.Random(4), "train", (5,))


if __name__ == "__main__":
    main()
