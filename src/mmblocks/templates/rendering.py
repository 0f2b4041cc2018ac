"""Chat templates rendered within limits of time, memory and length, in a process of their own."""

import json
from collections.abc import Mapping

from mmblocks.errors import ConfigError
from mmblocks.helper_process import HelperClient, NoAnswerError, Watchdog
from mmblocks.templates.contents import RefusedByTemplate

DEADLINE_S = 10.0
"""Templates of real models take a tenth of a millisecond."""
MEMORY_BYTES = 2**30
MAX_CHARACTERS = 1_000_000
"""A template may write this many and ten times its input."""
RENDER_HELPER = HelperClient("mmblocks.templates.jinja_helper", "renders chat templates")


class TemplateLimitError(ConfigError):
    """A chat template that takes more time, memory or characters than any needs."""


def render_template(jinja: str, variables: Mapping[str, object], whose: str) -> str:
    """What transformers' `apply_chat_template` writes with the same template and variables.

    Raises `RefusedByTemplate` where the template refuses the conversation, and `TemplateLimitError` with the limit that it
    reaches. whose: the template's name in errors. Variables are values that JSON has.
    """
    content = json.dumps({"template": jinja, "variables": variables}, default=str).encode()
    most = MAX_CHARACTERS + 10 * len(content)
    limits = {"memory_bytes": MEMORY_BYTES, "most_characters": most}
    try:
        reply, text = RENDER_HELPER.send_request(limits, content, Watchdog(DEADLINE_S, MEMORY_BYTES, "rendering it"))
    except NoAnswerError as cause:
        raise TemplateLimitError(_format_limit(whose, str(cause))) from cause
    if "limit" in reply:
        raise TemplateLimitError(_format_limit(whose, f"it {reply['limit']}"))
    if "refused" in reply:
        raise RefusedByTemplate(f"{whose} refuses this conversation: {reply['refused']}")
    return text.decode("utf-8", "surrogatepass")


def _format_limit(whose: str, what: str) -> str:
    return f"{whose} was stopped: {what}. No template of a real model needs that; choose another template by its name."
