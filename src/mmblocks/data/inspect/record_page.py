"""A single record as a page of HTML that needs no other file: its prompt with every trained token marked, its visuals drawn."""

import base64
import io
from collections.abc import Iterator
from html import escape

from mmblocks.data.inspect.drawing import draw_visual
from mmblocks.data.inspect.figures import InspectedRecord, InspectedVisual, VisualTokens

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; background: #fff; max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; line-height: 1.9; border: 1px solid #d0d7de; padding: 1rem }
pre span { border-bottom: 1px solid #d0d7de; margin-right: 1px }
pre mark { background: #aceebb; border-bottom: 2px solid #1a7f37; margin-right: 1px }
pre b { background: #ddf4ff; border: 1px solid #54aeff; border-radius: 4px; padding: 0 .4em; font-weight: 500 }
img { max-width: 100% } .fault { color: #b3261e }
</style>
"""


def make_page(record: InspectedRecord) -> str:
    """The page. Every text token is underlined on its own; trained ones are in <mark>."""
    encoded, prompt = record.encoded, ""
    body = [
        f"<h1>{escape(record.origin)}</h1>",
        f"<p>{len(encoded)} tokens, {encoded.visual_positions.numel()} of them visual, {encoded.num_labelled} trained.</p>",
    ]
    if encoded.num_cut:
        body.append(f"<p>{encoded.num_cut} tokens at the end of the last answer are over the limit, and cut.</p>")
    body += [f'<p class="fault">{escape(finding.detail)}</p>' for finding in record.findings]
    for piece in record.prompt:
        if isinstance(piece, VisualTokens):
            kind = record.visuals[piece.number - 1].shape.kind
            prompt += f"<b>visual {piece.number} ({kind}): {piece.num_tokens} tokens</b>"
        else:
            tag = "mark" if piece.trained else "span"
            # A token that ends a line shows it, since an underlined line break cannot be seen.
            shown = (escape(text).replace("\n", "↵\n") for text in piece.texts)
            prompt += "".join(f"<{tag}>{text}</{tag}>" for text in shown)
    body.append(f"<h2>Prompt</h2>\n<pre>{prompt}</pre>")
    for number, visual in enumerate(record.visuals, start=1):
        body += _format_visual(number, visual)
    return HEAD.replace("{title}", escape(record.origin)) + "\n".join(body) + "\n</html>\n"


def _format_visual(number: int, shown: InspectedVisual) -> Iterator[str]:
    plan, size = shown.routed.plan, shown.shape.size
    yield f"<h2>Visual {number}</h2>"
    yield (
        f"<p>{shown.shape.kind} of {size.width}x{size.height} pixels, shown as {escape(shown.routed.scenario)}: "
        f"{len(plan.views)} views, {plan.num_tokens} tokens.</p>"
    )
    if shown.shape.kind == "video":
        yield f"<p>{len(shown.frames)} of {shown.shape.num_frames} frames at {shown.frame_rate}.</p>"
    for rows_before, text in plan.inline_texts:
        yield f"<p>inline text after {rows_before} tokens: <code>{escape(text)}</code></p>"
    buffer = io.BytesIO()
    draw_visual(shown).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    yield f'<img alt="views of visual {number}" src="data:image/png;base64,{png}">'
