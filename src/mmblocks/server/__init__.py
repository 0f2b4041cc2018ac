"""A model behind the routes of OpenAI's chat completions, and a page to try it. Only this package imports fastapi, uvicorn."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks._optional import import_optional
from mmblocks.chat.engine import Engine, EngineLimits
from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision
from mmblocks.server.addresses import list_host_names, listen_on
from mmblocks.server.limits import ServerLimits
from mmblocks.settings import format_value

if TYPE_CHECKING:
    from mmblocks.server.serving import ModelServer

__all__ = ["ServerLimits", "make_server", "serve"]


def serve(
    model: OneVision | str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_keys: Sequence[str] = (),
    allow_urls: bool | Collection[str] = False,
    allow_hosts: Sequence[str] = (),
    limits: ServerLimits | None = None,
    engine_limits: EngineLimits | None = None,
) -> ModelServer:
    """Serve a model in threads of this process, with a page at `.url`; it ends with `.close()` or a `with` block.

    model: a model, or what `mmblocks.load` takes. port: 0 is a free one. name: what clients call it. api_keys: one of which
    clients have to send. allow_urls: as of `mmblocks.image`. allow_hosts: further names by which it is asked, such as that of
    a proxy in front of it. See `ServerLimits` and `EngineLimits` for how much it takes on.

    >>> with serve(model, port=0) as server:                                                      # doctest: +SKIP
    ...     client = openai.OpenAI(base_url=server.base_url, api_key="EMPTY")
    """
    if not isinstance(model, OneVision):
        from mmblocks.model.loading import load

        name = name or make_model_name(model)
        model = load(os.fspath(model))
    server = make_server(
        model,
        host=host,
        port=port,
        name=name,
        api_keys=api_keys,
        allow_urls=allow_urls,
        allow_hosts=allow_hosts,
        limits=limits,
        engine_limits=engine_limits,
    )
    return server.start_thread()


def make_server(
    model: OneVision,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_keys: Sequence[str] = (),
    allow_urls: bool | Collection[str] = False,
    allow_hosts: Sequence[str] = (),
    limits: ServerLimits | None = None,
    engine_limits: EngineLimits | None = None,
) -> ModelServer:
    """As `serve`, not started yet; its address is taken already."""
    require_packages()
    from mmblocks.data.video.video_reader import VideoReader
    from mmblocks.server.service import Access, Service
    from mmblocks.server.serving import ModelServer

    if not isinstance(limits, ServerLimits | None):
        raise ConfigError(f"server: limits={format_value(limits)} are no ServerLimits.")
    for setting, value in (("api_keys", api_keys), ("allow_urls", allow_urls), ("allow_hosts", allow_hosts)):
        if isinstance(value, str):  # whose letters would be taken one by one
            raise ConfigError(f"server: {setting} is one text; write a list of them.")
    hosts = None if allow_urls is False else () if allow_urls is True else tuple(allow_urls)
    access = Access(check_keys(api_keys), hosts, list_host_names(host, allow_hosts))
    limits = limits or ServerLimits(max_px=model.images.max_px)
    listener = listen_on(host, port)
    try:
        engine = Engine(model, engine_limits, video_reader=VideoReader(limits.video_read_s))
        service = Service(engine, name or model.origin.partition("@")[0] or "mmblocks", limits, access)
    except BaseException:
        listener.close()
        raise
    return ModelServer(service, listener)


def require_packages() -> None:
    """Raise `MissingDependencyError` where a package is missing that the modules of this package import."""
    import_optional("fastapi", extra="serve", to="serving a model")
    import_optional("starlette", extra="serve", to="serving a model")
    import_optional("uvicorn", extra="serve", to="serving a model")


def check_keys(given: Sequence[str]) -> tuple[str, ...]:
    """API keys. Raises `ConfigError` for what no header can hold."""
    for number, key in enumerate(given):
        if not isinstance(key, str) or not key or not all("!" <= letter <= "~" for letter in key):
            raise ConfigError(
                f"server: API key {number} is empty or has other characters than ASCII; write another one."
            )
    return tuple(given)


def make_model_name(reference: str | os.PathLike[str]) -> str:
    """What clients call a model: the name of its folder, or `org/name` of the hub. No path of this machine."""
    path = Path(reference)
    return path.resolve().name if path.exists() else str(reference).partition("@")[0]
