"""Pages of HTML that need no other file and no network, in light and dark."""

import base64
import io
from collections.abc import Iterable
from html import escape
from typing import Literal

from PIL import Image

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --text: #24292f; --paper: #fff; --line: #d0d7de; --green: #1a7f37; --red: #b3261e;
  --trained: #aceebb; --visual: #ddf4ff; --visual-line: #54aeff }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --paper: #0d1117; --line: #3d444d; --green: #4ac26b; --red: #ff8182;
  --trained: #1b4d2b; --visual: #0c2d6b; --visual-line: #388bfd } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper); max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; line-height: 1.9; border: 1px solid var(--line); padding: 1rem }
pre span { border-bottom: 1px solid var(--line); margin-right: 1px }
pre mark { background: var(--trained); color: inherit; border-bottom: 2px solid var(--green); margin-right: 1px }
pre b { background: var(--visual); border: 1px solid var(--visual-line); border-radius: 4px; padding: 0 .4em; font-weight: 500 }
img { max-width: 100% } .fault { color: var(--red) }
table { border-collapse: collapse } th, td { border: 1px solid var(--line); padding: .2rem .6rem; text-align: left; vertical-align: top }
td { white-space: pre-wrap; overflow-wrap: anywhere } .number { text-align: right; white-space: nowrap }
article { border-top: 3px solid var(--line); margin: 1.5rem 0 } .better { border-color: var(--green) } .worse { border-color: var(--red) }
.visuals { display: flex; flex-wrap: wrap; gap: .5rem }
</style>
"""


def make_html_page(title: str, body: Iterable[str]) -> str:
    """A page. title: plain text. body: lines of HTML, whose texts are escaped."""
    return HEAD.replace("{title}", escape(title)) + "\n".join(body) + "\n</html>\n"


def embed_image(image: Image.Image, description: str, format: Literal["PNG", "JPEG"] = "PNG") -> str:
    """An image as an HTML element that holds its file."""
    buffer = io.BytesIO()
    image.save(buffer, format)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/{format.lower()};base64,{content}">'
