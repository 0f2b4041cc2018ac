"""How commands name a model, and where it runs."""

import argparse

MODEL_FORMS = "a folder of mmblocks, transformers, LLaVA or an adapter, or org/name[@revision] on the Hugging Face hub"
MODEL_HELP = f"{MODEL_FORMS} (default: the bundled tiny model)"


def add_placement_options(parser: argparse.ArgumentParser) -> None:
    """Add --device, --dtype and --bits."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (default: a GPU where CUDA has one, else the CPU), cpu, cuda, cuda:1, mps, or cuda:0,cuda:1 "
        "to spread the language model's layers over several",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="type of the weights (default: auto, the stored one where the device computes it well; float32 on a CPU)",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 4),
        help="keep the language model's linear layers in so many bits (default: as --dtype says)",
    )


def add_base_option(parser: argparse.ArgumentParser) -> None:
    """Add --base."""
    parser.add_argument(
        "--base", metavar="MODEL", help="model that an adapter folder is read over (default: the one that it names)"
    )
