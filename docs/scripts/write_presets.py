"""Write docs/reference/presets.md: the numbers of every preset with their sources (tests/oracle/published_presets.json).

python docs/scripts/write_presets.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/presets.md"
TABLE = ROOT / "tests/oracle/published_presets.json"
HEAD = """\
# Presets and their sources

The numbers of every preset of an encoder or a backbone, and where they are published. `tests/oracle/test_published_presets.py`
builds each preset without weights and compares every number; a preset without a row here fails it. The settings are on the page
[Components](components.md).

No row was read from the hub itself. Each names the public repository, commit and file that its numbers were compared with:

| kind | what the source is |
| --- | --- |
"""
NOTES = """\
## What to know before you choose

- Normalisation of PE: timm states a centre crop for images that are not square, `perception_models` resizes the whole image by
  default. The presets do as timm states.
- `pe_lang_*_tiling` are the weights for models that cut images into tiles (AnyRes).
- `c_radio_*` have the fixed grid of timm's `vit_*_radio_*`: positions are fitted to 512 pixels when the weights are read. timm's
  `naflexvit_*_radio_*`, whose grid follows the image, are not offered.
- `fastvithd_1024` is the tower of FastVLM. timm has its architecture under the name `fastvit_mci3`, and not its weights: they
  are read out of a FastVLM of transformers. `mobileclip2_s3_256` is the same architecture with the weights of MobileCLIP 2,
  another normalisation, and without the last convolution.
- The weights of AIMv2, FastVLM, MobileCLIP and C-RADIO have licences of their own; read them before you publish a model.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown: kinds of sources, encoders, backbones."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    kinds = [f"| {kind} | {text} |" for kind, text in table["kinds"].items()]
    lines = [HEAD + "\n".join(kinds), "", NOTES, "## Encoders", "", *list_encoders(table["encoders"])]
    return "\n".join([*lines, "", "## Backbones", "", *list_backbones(table["backbones"])]) + "\n"


def list_encoders(rows: dict[str, Any]) -> Iterator[str]:
    yield "| preset | published as | view | grid or patch | width | blocks | heads | MLP | layer | mean | kind | sources |"
    yield "| --- " * 12 + "|"
    for name, row in rows.items():
        numbers = row["numbers"]
        size = [numbers.get(key, "") for key in ("dim", "depth", "heads", "mlp_dim")]
        if "stage_dims" in numbers:
            size[:2] = [join(numbers[key]) for key in ("stage_dims", "stage_depths")]
        if "members" in numbers or "member" in numbers:
            size[0] = "of its parts"
        cells = [
            f"{numbers['image_px']} px",
            format_patch(numbers),
            *size,
            numbers.get("layer", ""),
            format_mean(numbers),
        ]
        yield (
            f"| `{name}` | {row['model']} | "
            + " | ".join(map(str, cells))
            + f" | {row['kind']} | {format_sources(row)} |"
        )


def list_backbones(rows: dict[str, Any]) -> Iterator[str]:
    yield "| preset | published as | width | layers | heads | keys | MLP | vocabulary | positions | rope base | kind | sources |"
    yield "| --- " * 12 + "|"
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    keys += ("vocab_size", "max_position_embeddings", "rope_theta")
    for name, row in rows.items():
        cells = " | ".join(f"{row['config'].get(key, ''):g}".replace("e+0", "e") for key in keys)
        yield f"| `{name}` | {row['model']} | {cells} | {row['kind']} | {format_sources(row)} |"


def format_patch(numbers: dict[str, Any]) -> str:
    return f"{numbers['patch_px']} px" if "patch_px" in numbers else join(numbers["grid"], " x ")


def format_mean(numbers: dict[str, Any]) -> str:
    return join([f"{value:.3g}" for value in numbers.get("pixel_mean", ())])


def join(values: list[Any], separator: str = ", ") -> str:
    return separator.join(map(str, values))


def format_sources(row: dict[str, Any]) -> str:
    sources = [*row["sources"], *([f"layer: {link}"] if (link := row.get("layer_source")) else [])]
    unique = [one for one in sources if not (one.startswith("layer: ") and one[7:] in row["sources"])]
    return "; ".join([*map(link_source, unique), *([row["note"]] if "note" in row else [])])


def link_source(source: str) -> str:
    """`repository@commit:path (remark)` as a link to the file on GitHub; other text as it is."""
    lead, found, rest = source.rpartition("layer: ")
    place, _, remark = rest.partition(" ")
    repository, at, revision = place.partition("@")
    if not at:
        return source
    commit, _, path = revision.partition(":")
    link = f"[{repository.partition('/')[2]} {path.rpartition('/')[2]}](https://github.com/{repository}/blob/{commit}/{path})"
    return f"{lead}{found}{link}{' ' + remark if remark else ''}"


if __name__ == "__main__":
    main()
