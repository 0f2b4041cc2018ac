"""A single record as a page of HTML that needs no other file: its prompt with every trained token marked, its visuals drawn."""

from collections.abc import Iterator
from html import escape

from mmblocks.data.inspect.drawing import draw_visual
from mmblocks.data.inspect.figures import InspectedRecord, InspectedVisual, VisualTokens
from mmblocks.data.inspect.html_page import embed_image, make_html_page


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
    return make_html_page(record.origin, body)


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
    yield embed_image(draw_visual(shown), f"views of visual {number}")
