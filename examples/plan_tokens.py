"""How many tokens images and videos take, from their sizes alone: no weights, no pixels.

python examples/plan_tokens.py
"""

from mmblocks.components import poolings, tokenizers
from mmblocks.shapes import Size, VisualShape
from mmblocks.tokenizers.router import Router

SIGLIP = {"view_px": Size(384, 384), "grid": Size(27, 27), "spatial": True, "squash": True}
CONVERSATIONS = {
    "one small image": [VisualShape("image", Size(384, 384))],
    "one image, 1000 wide and 700 high": [VisualShape("image", Size(700, 1000))],
    "one photograph of 12 megapixels": [VisualShape("image", Size(3024, 4032))],
    "the same photograph beside another": [
        VisualShape("image", Size(3024, 4032)),
        VisualShape("image", Size(700, 1000)),
    ],
    "a video of 30 seconds": [VisualShape("video", Size(720, 1280), num_frames=900, fps=30.0)],
}


def main() -> None:
    """Print views and tokens of each conversation, as LLaVA-OneVision cuts it."""
    router = onevision()
    for title, visuals in CONVERSATIONS.items():
        print(title)
        for visual, routed in zip(visuals, router.plan(visuals), strict=True):
            views, tokens = len(routed.plan.views), routed.plan.num_tokens
            print(
                f"  {visual.kind} {visual.size.width}x{visual.size.height}: {views} views, {tokens} tokens ({routed.scenario})"
            )


def onevision() -> Router:
    """LLaVA-OneVision's visual tokenizers around SigLIP's 27x27 cells per view."""
    pooling = poolings.build("bilinear", stride=2)
    wired = {**SIGLIP, "pooling": pooling}
    return Router(
        image=tokenizers.build("anyres_max", **wired),
        multi_image=tokenizers.build("pad_newline", **wired),
        video=tokenizers.build("frames", max_frames=32, **wired),
    )


if __name__ == "__main__":
    main()
