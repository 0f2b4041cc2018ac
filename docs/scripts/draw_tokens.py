"""Draw docs/images/tokens.svg: how one image becomes tokens, with every number read from the plan itself.

python docs/scripts/draw_tokens.py
"""

from pathlib import Path

from mmblocks.components import tokenizers
from mmblocks.shapes import Size, VisualShape
from mmblocks.tokenizers.anyres import AnyResPlan

FIGURE = Path(__file__).parents[1] / "images/tokens.svg"
PICTURE = Size(700, 1000)
VIEW_PX, GRID = Size(384, 384), Size(27, 27)
SCALE = 0.2
"""Drawn units per pixel of canvas."""
GREY, PAPER, BLUE, GREEN, YELLOW = "#7d8590", "#eef1f4", "#b9d4f5", "#c2e6c5", "#f3cf7a"


def main() -> None:
    """Write the figure."""
    FIGURE.write_text(figure(), encoding="utf-8")


def figure() -> str:
    """The figure as SVG, readable on light and dark pages."""
    plan = tokenizers.build("anyres_max", view_px=VIEW_PX, grid=GRID, spatial=True).plan(VisualShape("image", PICTURE))
    body = [*picture(), *base_view(), *tiles(plan), *kept_map(plan), *row_of_tokens(plan)]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 400" font-family="ui-sans-serif, Helvetica, Arial, sans-serif">'
    return "\n".join([head, *(f"  {line}" for line in body), "</svg>", ""])


# Steps, from left to right ------------------------------------------------------------------------------------------


def picture() -> list[str]:
    width, height = PICTURE.width * SCALE * 0.8, PICTURE.height * SCALE * 0.8
    return [
        box(20, 120, width, height, BLUE),
        *caption(20, 262, f"image, {PICTURE.width}x{PICTURE.height} px"),
        arrow(190, 150, 262, 96),
        arrow(190, 200, 262, 236),
    ]


def base_view() -> list[str]:
    side = VIEW_PX.width * SCALE
    return [
        box(270, 40, side, side, BLUE),
        *caption(270, 20, "base view: the whole image, resized"),
        *caption(270, 134, f"{VIEW_PX.width}x{VIEW_PX.height} px: {GRID.width}x{GRID.height} cells"),
    ]


def tiles(plan: AnyResPlan) -> list[str]:
    """The canvas with its padding, the picture resized into it, and the lines along which it is cut."""
    canvas, resized = plan.views[-1].canvas, plan.views[-1].resized
    left, top = 270.0, 172.0
    inset = Size((canvas.height - resized.height) // 2, (canvas.width - resized.width) // 2)
    lines = [box(left, top, canvas.width * SCALE, canvas.height * SCALE, PAPER)]
    shown = (left + inset.width * SCALE, top + inset.height * SCALE, resized.width * SCALE, resized.height * SCALE)
    lines.append(box(*shown, GREEN))
    for view in plan.views[1:]:
        w = view.window
        lines.append(
            box(left + w.left * SCALE, top + w.top * SCALE, w.width * SCALE, w.height * SCALE, "none", dashed=True)
        )
    return [
        *lines,
        *caption(270, 346, f"{plan.tiles.width}x{plan.tiles.height} tiles of a {canvas.width}x{canvas.height} canvas;"),
        *caption(270, 363, f"the image fills {resized.width}x{resized.height} of it"),
    ]


def kept_map(plan: AnyResPlan) -> list[str]:
    """The joined cells without the padding, a newline after each line."""
    joined, kept = Size(plan.tiles.height * GRID.height, plan.tiles.width * GRID.width), plan.kept
    cell = VIEW_PX.width * SCALE / GRID.width
    left, top, width, height = 590.0, 172.0, kept.width * cell, kept.height * cell
    return [
        arrow(508, 250, 582, 250),
        box(left, top, width, height, GREEN),
        box(left + width + 2, top, 8, height, YELLOW),
        *caption(590, 346, f"{joined.width}x{joined.height} cells joined, {kept.width}x{kept.height} kept,"),
        *caption(590, 363, f"then {plan.map_cells.height} newlines, one per line"),
    ]


def row_of_tokens(plan: AnyResPlan) -> list[str]:
    cells, lines = plan.map_cells, plan.map_cells.height
    parts = [f"{GRID.area}", f"{lines} x ({cells.width} + 1) = {lines * (cells.width + 1)}"]
    assert GRID.area + lines * (cells.width + 1) == plan.num_tokens
    return [
        arrow(356, 78, 582, 78),
        box(590, 62, 60, 32, BLUE),
        box(650, 62, 284, 32, GREEN),
        *caption(620, 83, parts[0], middle=True),
        *caption(792, 83, parts[1], middle=True),
        *caption(590, 48, f"{plan.num_tokens} tokens"),
        arrow(770, 164, 770, 102),
    ]


# SVG ----------------------------------------------------------------------------------------------------------------


def box(x: float, y: float, width: float, height: float, fill: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 3"' if dashed else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" stroke="{GREY}"{dashes}/>'


def caption(x: float, y: float, text: str, *, middle: bool = False) -> list[str]:
    """Grey text beside a shape; dark and centred text inside one."""
    look = f'fill="{GREY}"' if not middle else 'fill="#1c2128" text-anchor="middle"'
    return [f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" {look}>{text}</text>']


def arrow(x: float, y: float, x2: float, y2: float) -> str:
    """A line with a tip in its own direction."""
    dx, dy = x2 - x, y2 - y
    length = (dx * dx + dy * dy) ** 0.5
    ux, uy = dx / length * 8, dy / length * 8
    tip = f"M{x2:.1f} {y2:.1f} l{-ux - uy / 2:.1f} {-uy + ux / 2:.1f} l{uy:.1f} {-ux:.1f} z"
    return f'<path d="M{x:.1f} {y:.1f} L{x2:.1f} {y2:.1f} {tip}" stroke="{GREY}" stroke-width="1.6" fill="{GREY}"/>'


if __name__ == "__main__":
    main()
