"""Serve a model over HTTP: the routes of OpenAI's chat completions with images and videos, and a page to try it.

Ctrl-C and SIGTERM let running requests end, and refuse new ones meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.cli.image_options import add_image_options, read_image_options
from mmblocks.cli.model_options import MODEL_HELP, add_base_option, add_placement_options
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.chat.engine import EngineLimits
    from mmblocks.model.onevision import OneVision
    from mmblocks.server import ServerLimits
    from mmblocks.server.serving import ModelServer

BUNDLED = """\
The bundled tiny model answers. It knows drawings of coloured shapes only; what it says about photographs means nothing.
For photographs, serve a trained model: `mmblocks serve MODEL`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    add_address_options(parser)
    add_limit_options(parser)
    add_base_option(parser)
    add_placement_options(parser)
    add_image_options(parser, "as the model says")


def add_address_options(parser: argparse.ArgumentParser) -> None:
    """Add where the server is, and who may ask it."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000); 0 takes a free one")
    parser.add_argument("--name", help="what clients call the model (default: the name of its folder, or org/name)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="keys, one a line; clients have to send one of them"
    )
    parser.add_argument(
        "--allow-hosts",
        nargs="+",
        default=[],
        metavar="HOST",
        help="further names by which it is asked, such as that of a proxy in front of it",
    )
    parser.add_argument(
        "--allow-urls",
        nargs="*",
        metavar="HOST",
        help="fetch images and videos that are http(s) URLs, from public addresses and from these hosts (default: no URLs)",
    )


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add how much the server takes on; what is not given is as in `ServerLimits` and `EngineLimits`."""
    for name, kind, text in (
        ("--max-queued", int, "requests that wait; more are refused with 429 (default: 256)"),
        ("--max-running", int, "answers that are written at a time (default: 64)"),
        ("--cache-gib", float, "cache of keys and values (default: 2 on a CPU, 60 %% of what is free on a GPU)"),
        ("--max-answer-tokens", int, "most that a request may ask for (default: what the model takes)"),
        ("--max-body-mib", float, "most of a request, images and videos among it (default: 128)"),
        ("--max-clip-seconds", float, "longest video (default: 3600)"),
        ("--max-request-seconds", float, "longest time of an answer (default: 600)"),
        ("--drain-seconds", float, "what running requests get when the server is stopped (default: 30)"),
    ):
        parser.add_argument(name, type=kind, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    from mmblocks.assets import find_tiny_model
    from mmblocks.server import make_model_name, make_server, require_packages

    require_packages()  # before a model is read
    keys = read_keys(args.api_key_file)
    engine_limits, limits = read_engine_limits(args), read_server_limits(args)
    reference = args.model or find_tiny_model()
    model = load_model(args, reference)
    server = make_server(
        model,
        host=args.host,
        port=args.port,
        name=args.name or make_model_name(reference),
        api_keys=keys,
        allow_urls=False if args.allow_urls is None else args.allow_urls,
        allow_hosts=args.allow_hosts,
        limits=replace(limits, max_px=model.images.max_px),
        engine_limits=engine_limits,
    )
    if Path(reference).exists() and Path(reference).resolve() == find_tiny_model().resolve():
        print(BUNDLED, file=sys.stderr)
    warn_of_open_address(args.host, has_keys=bool(keys))
    server.run_until_stopped(lambda: announce_server(server))
    return 0


def load_model(args: argparse.Namespace, reference: str | Path) -> OneVision:
    """The model, where and as the options say."""
    from mmblocks.model.loading import load_located, locate_model

    located, options = locate_model(reference, args.base), read_image_options(args)
    return load_located(located, dtype=args.dtype, device=args.device, bits=args.bits, images=options)


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys in a file, one a line. Raises `ConfigError` for a file without one."""
    if file is None:
        return ()
    try:
        lines = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(
            f"--api-key-file {file} cannot be read ({cause}); write a text file, one key a line."
        ) from cause
    if not lines:
        raise ConfigError(f"--api-key-file {file} has no key; write one a line, or leave the option out.")
    return tuple(lines)


def read_engine_limits(args: argparse.Namespace) -> EngineLimits:
    """What the options say of the engine."""
    from mmblocks.chat.engine import EngineLimits

    cache = None if args.cache_gib is None else int(args.cache_gib * 2**30)
    given = {"max_queued": args.max_queued, "max_running": args.max_running, "cache_bytes": cache}
    return EngineLimits(**{name: value for name, value in given.items() if value is not None})


def read_server_limits(args: argparse.Namespace) -> ServerLimits:
    """What the options say of requests."""
    from mmblocks.server import ServerLimits

    body = None if args.max_body_mib is None else int(args.max_body_mib * 2**20)
    given = {
        "body_bytes": body,
        "open_body_bytes": None if body is None else max(body, ServerLimits().open_body_bytes),
        "answer_tokens": args.max_answer_tokens,
        "clip_s": args.max_clip_seconds,
        "request_s": args.max_request_seconds,
        "drain_s": args.drain_seconds,
    }
    return ServerLimits(**{name: value for name, value in given.items() if value is not None})


def warn_of_open_address(host: str, *, has_keys: bool) -> None:
    """Say so where others than this machine can ask without a key."""
    from mmblocks.server.addresses import is_loopback

    if not is_loopback(host) and not has_keys:
        print(
            f"warning: everybody who reaches {host} can ask this model; write --api-key-file FILE, or --host 127.0.0.1.",
            file=sys.stderr,
        )


def announce_server(server: ModelServer) -> None:
    """Print the addresses of a server."""
    print(f"page:   {server.url}")
    print(f"API:    {server.base_url}   model {server.service.name}", flush=True)
