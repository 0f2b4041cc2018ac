"""The process that renders chat templates for another one (`mmblocks.helper_process`).

A template is a program that came with a checkpoint. It is rendered as transformers renders it (sandboxed, with the same
tags, filters and functions), where it cannot take the time and the memory of the process that asks. Nothing here
imports torch or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_REASON_CHARACTERS = 1000
"""Characters of an error that a template raises."""


def main() -> None:
    """Render until standard input ends, in the memory that the environment allows."""
    import sys

    from mmblocks.helper_process import serve_requests

    sys.setrecursionlimit(10_000)  # of the machinery around a template; what recurses without end still ends
    serve_requests(render_request)


def render_request(request: Mapping[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """The rendered text, or why there is none. `content` is the template and its variables, as JSON."""
    _limit_memory(request["memory_bytes"])
    asked = json.loads(content)
    try:
        text = _compile_template(asked["template"]).render(**asked["variables"])
    except MemoryError:
        raise
    except RecursionError:
        return {"limit": "calls itself without end"}, b""
    except Exception as cause:  # whatever a template does wrong in Python speaks against the conversation
        return {"refused": str(cause)[:MAX_REASON_CHARACTERS]}, b""
    if len(text) > request["most_characters"]:
        return {"limit": f"writes {len(text)} characters, and at most {request['most_characters']} are taken"}, b""
    return {}, text.encode("utf-8", "surrogatepass")


def _limit_memory(memory_bytes: int) -> None:
    """Have what is too big fail at once: the owner's look at this process comes every few milliseconds only."""
    import resource

    with suppress(ValueError, OSError):  # a lower limit is set already; macOS takes none
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


@lru_cache(maxsize=16)
def _compile_template(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_error,
        "strftime_now": _format_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(template)


class GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %}, which marks answers and writes what is in it."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write_body"), [], [], body).set_lineno(line)

    def _write_body(self, caller: Any) -> str:
        return caller()


class _Dict:
    """`dict` of a template: makes dictionaries, and is no class to start from."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        return dict.fromkeys(*given)


class _Namespace(Namespace):
    """A namespace without private names, which would lead out of the sandbox."""

    def __init__(*given: Any, **named: Any) -> None:
        for name in dict(*given[1:], **named):
            _refuse_private(name)
        Namespace.__init__(*given, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a chat template has no private name {name!r}")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_error(message: Any) -> None:
    raise TemplateError(str(message))


def _format_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
