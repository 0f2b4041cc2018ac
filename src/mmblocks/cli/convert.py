"""`mmblocks convert FROM TO`: write a checkpoint in another layout. Both models are run and compared before it is kept.

`mmblocks convert mm_projector.bin MODEL --out NEW` puts a projector that LLaVA trained alone into a copy of a model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.cli.image_options import add_image_options, read_image_options
from mmblocks.cli.model_options import MODEL_FORMS, add_base_option
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from mmblocks.model.loading import LocatedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mmblocks.model.convert import WRITABLE

    parser.add_argument("source", metavar="FROM", help=f"the checkpoint to read: {MODEL_FORMS}; or an adapter's file")
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
        "--template", metavar="NAME", help="chat template (`mmblocks list template`) instead of the one of FROM"
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="keep the result without running both models (for models larger than memory)",
    )
    parser.add_argument("--out", type=Path, help="with an adapter: folder to write; it must not exist")
    add_base_option(parser)
    add_image_options(parser, "as the model says, if it says anything")


def run(arguments: argparse.Namespace) -> int:
    from mmblocks.model.loading import locate_model

    located = None if Path(arguments.source).is_file() else locate_model(arguments.source, arguments.base)
    if read_image_options(arguments) and (
        located is None or (arguments.to or _choose_default_layout(located.layout)) != "mmblocks"
    ):
        raise ConfigError(
            "--alpha, --grey and --max-px say how a model in mmblocks' own layout reads images, and none is written here; "
            "leave them out, or write one with --to mmblocks."
        )
    if located is None:
        return _merge_adapter(Path(arguments.source), arguments.target, arguments.out)
    if arguments.out is not None:
        raise ConfigError(f"--out goes with an adapter's file; {arguments.source} is none. Write convert FROM TO.")
    if arguments.target.exists():
        raise ConfigError(f"{arguments.target} exists; name a folder that does not.")
    return _convert_checkpoint(located, arguments)


def _choose_default_layout(source_layout: str) -> str | None:
    """The layout to write where none is named; None where the model decides."""
    return None if source_layout == "mmblocks" else "mmblocks"


def _merge_adapter(file: Path, model: Path, out: Path | None) -> int:
    from mmblocks.model.convert.original.adapter import merge_adapter

    if out is None:
        raise ConfigError(f"{file} is an adapter for the model in {model}; name the folder to write with --out.")
    merged = merge_adapter(file, model, out)
    print(f"taken    {len(merged.tensors)} tensors of {file}")
    for name in merged.kept:
        print(f"kept     {name}: the file does not have it")
    print(f"written  {out}")
    return 0


def _convert_checkpoint(located: LocatedModel, arguments: argparse.Namespace) -> int:
    import torch

    from mmblocks.cli.convert_check import check_logits, print_memory_need
    from mmblocks.cli.convert_prompts import check_prompts
    from mmblocks.model.convert import find_fitting_family, layout_of, silence_transformers
    from mmblocks.model.convert.weights import find_stored_dtype
    from mmblocks.model.loading import describe_import, import_located
    from mmblocks.storage import replace_folder

    silence_transformers()
    source, target = located.folder, arguments.target
    source_layout = located.get_layout()
    weights_folder = source_layout.find_weights_folder(source)
    print(f"found    {source_layout.about} in {located.origin or source}")
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else find_stored_dtype(weights_folder)
    if arguments.to == "parts":
        return _save_vision_parts(source, target, dtype)
    print_memory_need(weights_folder, arguments.dtype, checked=not arguments.no_check)
    with replace_folder(target) as fresh:
        model, record = import_located(
            located, dtype, template=arguments.template, images=read_image_options(arguments)
        )
        print("\n".join(describe_import(model, record)))
        to = arguments.to or _choose_default_layout(located.layout) or find_fitting_family(model)
        target_layout = layout_of(to)
        if reasons := target_layout.reasons_against_export(model):
            listed = "\n".join(f"  - {reason}" for reason in reasons)
            raise ConfigError(f"{target_layout.about} cannot express this model:\n{listed}")
        target_layout.export_model(model, fresh)
        print(f"written  {target_layout.about}")
        if not arguments.no_check:
            check_prompts(model, source, fresh, template_is_given=arguments.template is not None)
            check_logits(model, source_layout, source, target_layout, fresh, exact=arguments.dtype is None)
    print(f"kept     {target}")
    return 0


def _save_vision_parts(source: Path, target: Path, dtype: torch.dtype) -> int:
    from mmblocks.model.build import count_parameters
    from mmblocks.model.convert.parts import import_vision_parts

    parts = import_vision_parts(source, dtype=dtype)
    for part in ("encoder", "projector"):
        print(f"part     {part}: {parts.settings[part]['name']}, {count_parameters(getattr(parts, part)):,} parameters")
    parts.save(target)
    print(f"kept     {target}, without the language model")
    return 0
