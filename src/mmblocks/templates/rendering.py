"""Chat templates rendered within limits of time, memory and length, in a process of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmblocks.errors import ConfigError
from mmblocks.helper_process import Home, NoAnswer, Watch
from mmblocks.templates.contents import Refused

DEADLINE_S = 10.0
"""A template of a real model takes a tenth of a millisecond."""
MEMORY_BYTES = 2**30
MOST_CHARACTERS = 1_000_000
"""What a template may write beside ten times what it was given."""
HOME = Home("mmblocks.templates.jinja_helper", "renders chat templates")


class BeyondLimits(ConfigError):
    """A chat template that takes more time, memory or characters than any needs."""


def render(jinja: str, variables: Mapping[str, Any], whose: str) -> str:
    """What transformers' `apply_chat_template` writes with the same template and variables.

    Raises `Refused` where the template refuses the conversation, `BeyondLimits` that names the limit. whose: the
    template, as errors call it. Variables are what JSON knows.
    """
    content = json.dumps({"template": jinja, "variables": variables}, default=str).encode()
    most = MOST_CHARACTERS + 10 * len(content)
    limits = {"memory_bytes": MEMORY_BYTES, "most_characters": most}
    try:
        found, text = HOME.ask(limits, content, Watch(DEADLINE_S, MEMORY_BYTES, "rendering it"))
    except NoAnswer as cause:
        raise BeyondLimits(_beyond(whose, str(cause))) from cause
    if "limit" in found:
        raise BeyondLimits(_beyond(whose, f"it {found['limit']}"))
    if "refused" in found:
        raise Refused(f"{whose} refuses this conversation: {found['refused']}")
    return text.decode("utf-8", "surrogatepass")


def _beyond(whose: str, what: str) -> str:
    return f"{whose} was stopped: {what}. No template of a real model needs that; choose another template by its name."
