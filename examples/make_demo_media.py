"""Draw the images and the video of `mmblocks demo` anew; the files do not depend on when or where this runs.

    python examples/make_demo_media.py [FOLDER]

FOLDER is by default the package's own. The scenes are TinyWorld's, and none of them occurs in training: a scene
belongs to the held-out split by what is in it.
"""

import random
import sys
from pathlib import Path

import av
import numpy as np

from mmblocks.assets import FOLDER
from mmblocks.data.tinyworld import Scene, Thing, draw
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size

PICTURES = {
    "image.png": (
        Size(768, 1024),
        Scene((Thing("blue", "square", 0, 2), Thing("red", "circle", 1, 0), Thing("yellow", "triangle", 2, 2))),
    ),
    "first.png": (Size(480, 640), Scene((Thing("green", "ring", 0, 1), Thing("white", "cross", 2, 2)))),
    "second.png": (Size(512, 512), Scene((Thing("red", "circle", 0, 2), Thing("purple", "square", 2, 0)))),
}
CLIP_NAME = "video.mp4"
CLIP = Scene((Thing("yellow", "triangle", 2, 0), Thing("purple", "square", 0, 2)), direction="right", cells=2)
CLIP_SIDE_PX = 256
SEED = 4
"""With this one all backgrounds come out without noise, which would make the files ten times larger."""


def main(folder: Path) -> None:
    """Write every file of the demo."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (size, scene) in PICTURES.items():
        draw.draw_image(held_out(scene), random.Random(SEED), (size.height, size.width)).save(
            folder / name, optimize=True
        )
    write_clip(folder / CLIP_NAME, draw.draw_video(held_out(CLIP), random.Random(SEED), CLIP_SIDE_PX))
    for path in sorted(folder.iterdir()):
        print(f"{path}  {path.stat().st_size / 1000:.1f} kB")


def held_out(scene: Scene) -> Scene:
    """The scene, if it is one that no model has been trained on."""
    if scene.split != "heldout":
        raise ConfigError(f"{scene} is a training scene; move one of its things, or give it another colour.")
    return scene


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Frames (frames, height, width, 3) as H.264 in the pixel format that every player takes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=int(draw.VIDEO_FPS), options={"crf": "16", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "media")
