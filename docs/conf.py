"""How Sphinx builds the site. From the root of a checkout:

python -m sphinx -W --keep-going -n docs build/site
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import mmblocks

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from docstrings import to_rst

project = "mmblocks"
author = "The mmblocks developers"
version = release = mmblocks.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
nb_execution_mode = "off"  # pages show the outputs that are committed; tests run the notebooks
for notebook in Path(__file__).parents[1].glob("examples/*.ipynb"):  # Sphinx reads no files outside of docs
    shutil.copy(notebook, Path(__file__).parent / "tutorials")
exclude_patterns = ["scripts", "benchmarks"]
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_title = f"mmblocks {release}"
html_theme_options = {"show_toc_level": 2, "collapse_navigation": True, "navigation_depth": 3, "show_prev_next": False}
html_show_sourcelink = False


def package_names() -> str:
    """A table of the names that `import mmblocks` offers, each with a link to where it is defined."""
    lines = ["| name | what it is |", "|---|---|"]
    for name in mmblocks.__all__:
        found = getattr(mmblocks, name)
        home = f"{found.__module__}.{found.__qualname__}"
        lines.append(f"| {{py:obj}}`mmblocks.{name} <{home}>` | {(found.__doc__ or '').strip().splitlines()[0]} |")
    return "\n".join(lines)


myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3
myst_substitutions = {"package_names": package_names()}

autosummary_generate = True
autodoc_mock_imports = ["lmms_eval"]  # lives in an environment of its own
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch refer to pages that are not here
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
default_role = "code"

# Nitpicky by rule: a reference into mmblocks must lead somewhere. No inventories of other packages are fetched, so that
# the site builds without network; references to them, to private classes and to type variables stay plain text.
nitpick_ignore_regex = [
    ("py:.*", r"(?!mmblocks\.).*"),
    ("py:.*", r"mmblocks\.(.*\.)?_.*"),
    ("py:.*", r"mmblocks\.(.*\.)?([A-Z]|\w+T)"),
]
# Annotations that only a type checker imports are short names; a short name with two classes gets no link.
suppress_warnings = ["ref.python"]


def readable_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> Any:
    """Defaults that are no Python, such as the `<factory>` of dataclasses, would keep Sphinx from reading a signature."""
    return signature and (re.sub(r"= ?<[^<>]+>", "= ...", signature), returns)


def setup(app: Any) -> None:
    """Docstrings are read as Markdown."""
    app.connect("autodoc-process-docstring", lambda app, what, name, obj, options, lines: to_rst(lines))
    app.connect("autodoc-process-signature", readable_signature)
