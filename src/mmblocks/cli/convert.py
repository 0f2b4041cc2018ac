"""`mmblocks convert FROM TO`: a checkpoint in another layout, checked by running both before it is kept.

`mmblocks convert mm_projector.bin MODEL --out NEW` puts a projector that LLaVA trained alone into a copy of a model.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.cli.image_options import add_image_options, read_image_options
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.model.convert.layout import CheckpointLayout
    from mmblocks.model.onevision import OneVision

PARTS = ("encoder", "projector", "learned_tokens", "backbone")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mmblocks.model.convert import WRITABLE

    parser.add_argument(
        "source", metavar="FROM", type=Path, help="folder of the checkpoint to read, or an adapter's file"
    )
    parser.add_argument(
        "target", metavar="TO", type=Path, help="folder to write, which must not exist; for an adapter, its model"
    )
    parser.add_argument(
        "--to",
        choices=(*WRITABLE, "parts"),
        help="layout to write (default: mmblocks; for a model saved by mmblocks the first that can express it); "
        "parts: encoder and projector of a BLIP-2 without its language model",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the written weights (default: as they are stored)",
    )
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="chat template to take (`mmblocks list template`) instead of the one that FROM came with",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="keep the result without running both (for models beyond memory)"
    )
    parser.add_argument("--out", type=Path, help="with an adapter: folder to write; it must not exist")
    add_image_options(parser, "what the model says, if anything")


def run(arguments: argparse.Namespace) -> int:
    _require_images_kept(arguments)
    if arguments.source.is_file():
        return _adapt(arguments.source, arguments.target, arguments.out)
    if arguments.out is not None:
        raise ConfigError(f"--out goes with an adapter's file; {arguments.source} is none. Write convert FROM TO.")
    return _convert_checkpoint(arguments)


def _require_images_kept(arguments: argparse.Namespace) -> None:
    """Refuse to say how images are read where nothing of it would be written."""
    from mmblocks.model.convert import detect_layout

    if not read_image_options(arguments):
        return
    if (
        arguments.source.is_file()
        or (arguments.to or _choose_default_layout(detect_layout(arguments.source))) != "mmblocks"
    ):
        raise ConfigError(
            "--alpha, --grey and --max-px say how a model in mmblocks' own layout reads images, and none is written here; "
            "leave them out, or write one with --to mmblocks."
        )


def _choose_default_layout(found: str) -> str | None:
    """The layout that is written where none is named; None where the model decides."""
    return None if found == "mmblocks" else "mmblocks"


def _adapt(file: Path, model: Path, out: Path | None) -> int:
    from mmblocks.model.convert.original.adapter import merge_adapter

    if out is None:
        raise ConfigError(f"{file} is an adapter for the model in {model}; name the folder to write with --out.")
    taken = merge_adapter(file, model, out)
    print(f"taken    {len(taken.tensors)} tensors of {file}")
    for name in taken.kept:
        print(f"kept     {name}: the file does not have it")
    print(f"written  {out}")
    return 0


def _convert_checkpoint(arguments: argparse.Namespace) -> int:
    from mmblocks.cli.convert_check import check_logits, print_memory_need
    from mmblocks.cli.convert_prompts import check_prompts
    from mmblocks.model.convert import detect_layout, layout_of, silence_transformers
    from mmblocks.storage import replace_folder

    if arguments.target.exists():
        raise ConfigError(f"{arguments.target} exists; name a folder that does not.")
    silence_transformers()
    found = detect_layout(arguments.source)
    read = layout_of(found)
    print(f"found    {read.about} in {arguments.source}")
    if arguments.to == "parts":
        return _save_vision_parts(arguments.source, arguments.target, arguments.dtype)
    print_memory_need(arguments.source, arguments.dtype, checked=not arguments.no_check)
    with replace_folder(arguments.target) as fresh:
        model = _import_model(read, arguments.source, arguments.dtype, arguments.template)
        model.spec = replace(model.spec, images=model.images.with_changes(read_image_options(arguments)))
        write = layout_of(arguments.to or _fitting(found, model))
        _require_expressed(write, model)
        write.export_model(model, fresh)
        print(f"written  {write.about}")
        if not arguments.no_check:
            check_prompts(model, arguments.source, fresh, asked_for=arguments.template is not None)
            check_logits(model, read, arguments.source, write, fresh, exact=arguments.dtype is None)
    print(f"kept     {arguments.target}")
    return 0


def _save_vision_parts(source: Path, target: Path, dtype_name: str | None) -> int:
    import torch

    from mmblocks.model.build import count_parameters
    from mmblocks.model.convert.parts import import_vision_parts
    from mmblocks.model.convert.weights import find_stored_dtype

    parts = import_vision_parts(source, dtype=getattr(torch, dtype_name) if dtype_name else find_stored_dtype(source))
    for part in ("encoder", "projector"):
        print(f"part     {part}: {parts.settings[part]['name']}, {count_parameters(getattr(parts, part)):,} parameters")
    parts.save(target)
    print(f"kept     {target}, without the language model")
    return 0


# Reading ------------------------------------------------------------------------------------------------------------


def _import_model(door: CheckpointLayout, folder: Path, dtype_name: str | None, template: str | None) -> OneVision:
    import torch

    from mmblocks.model.convert.weights import find_stored_dtype

    dtype: torch.dtype = getattr(torch, dtype_name) if dtype_name else find_stored_dtype(folder)
    model, found = door.import_model(folder, dtype=dtype, template=template)
    for part, size in _sizes(model).items():
        print(f"part     {part}: {size}")
    print(f"layout   {found.layout}: {len(found.tensors)} tensors read as {str(dtype).removeprefix('torch.')}")
    print(f"template {found.chat}")
    for reason, count in Counter(found.unused.values()).items():
        print(f"unused   {count} tensors: {reason}")
    return model


def _sizes(model: OneVision) -> dict[str, str]:
    """What each part of a model is, and its parameters."""
    from mmblocks.model.build import count_parameters
    from mmblocks.registry import split_spec

    names = {part: split_spec(getattr(model.spec, part))[0] for part in PARTS if part != "learned_tokens"}
    names["learned_tokens"] = ", ".join(model.learned_tokens.keys()) or "none"
    names["backbone"] = model.backbone.config.model_type
    return {part: f"{names[part]}, {count_parameters(getattr(model, part)):,} parameters" for part in PARTS}


# Writing ------------------------------------------------------------------------------------------------------------


def _fitting(found: str, model: OneVision) -> str:
    """mmblocks' own layout, or for a model that has it already the family of transformers that can express it."""
    from mmblocks.model.convert import find_fitting_family

    return _choose_default_layout(found) or find_fitting_family(model)


def _require_expressed(door: CheckpointLayout, model: OneVision) -> None:
    if reasons := door.reasons_against_export(model):
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise ConfigError(f"{door.about} cannot express this model:\n{listed}")
