"""The process that renders chat templates for another one (`mmblocks.helper_process`).

A template is a program that came with a checkpoint. It is rendered as transformers renders it (sandboxed, with the same
tags, filters and functions), where it cannot take the time and the memory of the process that asks. Nothing here
imports torch or transformers.
"""

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

    sys.setrecursionlimit(10_000)  # for the machinery around a template; endless recursion still ends
    serve_requests(render_request)


def render_request(request: Mapping[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """The rendered text, or why there is none. `content` is the template and its variables, as JSON."""
    import resource

    # Too large an allocation fails at once: the owner checks this process every few milliseconds only.
    with suppress(ValueError, OSError):  # a lower limit is set already, or the system (macOS) has none
        hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"], hard_limit))
    given = json.loads(content)
    try:
        text = _compile_template(given["template"]).render(**given["variables"])
    except MemoryError:
        raise
    except RecursionError:
        return {"limit": "calls itself without end"}, b""
    except Exception as cause:  # any Python error of a template is its refusal of the conversation
        return {"refused": str(cause)[:MAX_REASON_CHARACTERS]}, b""
    if len(text) > request["most_characters"]:
        return {"limit": f"writes {len(text)} characters, and at most {request['most_characters']} are taken"}, b""
    return {}, text.encode("utf-8", "surrogatepass")


@lru_cache(maxsize=16)
def _compile_template(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters |= {"tojson": tojson}
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
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
    """`dict` of a template: it makes dictionaries, and is no class that leads out of the sandbox."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, *keys_and_value: Any) -> dict[Any, Any]:
        return dict.fromkeys(*keys_and_value)


class _Namespace(Namespace):
    """A namespace without private names, which would lead out of the sandbox."""

    def __init__(*given: Any, **named: Any) -> None:
        for name in dict(*given[1:], **named):
            _refuse_private(name)
        Namespace.__init__(*given, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a chat template has no private name {name!r}")


# What templates call, by the names that they use --------------------------------------------------------------------


def tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """A value as JSON, as transformers writes it: without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: object) -> None:
    """Refuse the conversation."""
    raise TemplateError(str(message))


def strftime_now(pattern: str) -> str:
    """The local time."""
    return datetime.now().strftime(pattern)
