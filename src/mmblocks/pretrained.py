"""Reading checkpoints with transformers, as data only: no code of a checkpoint is run.

transformers can run Python files of a checkpoint (`auto_map`), and asks at the terminal where nothing is set. This module
always forbids it. A checkpoint of a family that transformers has is read by transformers' own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.errors import CheckpointError, MMBlocksError
from mmblocks.hub import HubReference, fetch_snapshot
from mmblocks.json_files import read_object

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

CONFIG = "config.json"
SETTINGS = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)
"""Files of a checkpoint that transformers reads as objects of settings."""
INDEX = "model.safetensors.index.json"
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
"""Settings in which transformers takes the hub's name of a kernel, which is code."""
MAX_REPEATS = 10_000
"""Layers, blocks or experts that a model may have: a config that says more would fill the memory before it is refused."""
_REPEATED = ("layers", "n_layer", "depth", "depths", "num_blocks", "experts")


_may_fetch = True


@contextmanager
def forbid_fetching() -> Iterator[None]:
    """While the block runs, this process uses no network; what is not on this machine counts as missing."""
    global _may_fetch
    before, _may_fetch = _may_fetch, False
    try:
        yield
    finally:
        _may_fetch = before


def may_fetch() -> bool:
    """Whether files of the hub may be fetched now: not within `forbid_fetching`."""
    return _may_fetch


def find_cached_folder(source: str, file: str) -> Path | None:
    """The folder of a hub id in the hub's cache, where that has `file`. Uses no network."""
    from huggingface_hub import try_to_load_from_cache

    reference = HubReference.parse(source)
    path = reference and try_to_load_from_cache(reference.repository, file, revision=reference.revision)
    return Path(path).parent if isinstance(path, str) else None


def locate_source(source: str | Path, *, weights: bool = False) -> str:
    """The folder to pass to transformers. Files of the hub are fetched first, without their weights unless they are needed."""
    reference = None if Path(source).exists() else HubReference.parse(str(source))
    if reference is None:
        return str(source)
    return str(fetch_snapshot(reference, weights=weights, offline=not _may_fetch).folder)


def read_config(source: str | Path) -> PreTrainedConfig:
    """The config of a hub id or folder, of a family that transformers has."""
    from transformers import AutoConfig

    return read_pretrained(AutoConfig, source, needs=CONFIG)


def read_config_entries(source: str | Path, kind: type[PreTrainedConfig] | None = None) -> dict[str, Any]:
    """The entries of config.json of a hub id or folder. kind: a config class with file names of its own."""
    from transformers import PreTrainedConfig

    with convert_checkpoint_errors(source, CONFIG):
        raw, _ = (kind or PreTrainedConfig).get_config_dict(locate_source(source))
    _refuse_code(raw, source)
    return raw


def read_local_config(folder: Path) -> dict[str, Any]:
    """The entries of config.json of a local folder. Raises `CheckpointError` as `read_object` does."""
    raw = read_object(folder / CONFIG)
    require_countable_layers(raw, folder / CONFIG)
    _refuse_code(raw, folder / CONFIG)
    return raw


def read_preprocessing(source: str | Path) -> dict[str, Any]:
    """The entries of preprocessor_config.json of a hub id or folder; empty without that file."""
    from transformers.image_processing_base import ImageProcessingMixin

    _require_readable(source)
    try:
        return dict(ImageProcessingMixin.get_image_processor_dict(locate_source(source))[0])
    except OSError:
        return {}


def read_tokenizer(source: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The text tokenizer of a hub id or folder."""
    from transformers import AutoTokenizer

    tokenizer = read_pretrained(AutoTokenizer, source, **options)
    with convert_checkpoint_errors(source):
        tokenizer("a")  # one with damaged settings can be read, and fails on use
        if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():
            raise CheckpointError(
                f"{source} holds no vocabulary of a text tokenizer (tokenizer.json); it is not whole."
            )
    return tokenizer


def read_processor(folder: str | Path) -> Any:
    """The processor of a folder."""
    from transformers import AutoProcessor

    return read_pretrained(AutoProcessor, folder)


def read_generation_config(folder: str | Path) -> GenerationConfig:
    """The generation_config.json of a folder."""
    from transformers import GenerationConfig

    _require_readable(folder)
    with convert_checkpoint_errors(folder, "generation_config.json"):
        return GenerationConfig.from_pretrained(str(folder))


def read_model(kind: type[Any], source: str | Path | None, **options: Any) -> Any:
    """A model of transformers with the weights of a hub id or folder. kind: its class, or one of the Auto classes.

    `source` is None where the weights are given (`state_dict`).
    """
    return read_pretrained(kind, source, needs=CONFIG, weights=True, trust_remote_code=False, **options)


def read_pretrained(
    kind: type[Any], source: str | Path | None, needs: str = "", *, weights: bool = False, **options: Any
) -> Any:
    """`kind.from_pretrained(source)` that runs no code of the checkpoint and raises only `CheckpointError`.

    needs: a file that a local folder must have. weights: whether the weights of a hub id are needed, too.
    """
    with convert_checkpoint_errors(source or "the model", needs):
        if source is not None:
            _require_readable(source, needs)
        place = source if source is None else locate_source(source, weights=weights)
        return kind.from_pretrained(place, **{"trust_remote_code": False, **options})


def list_loading_faults(report: Mapping[str, Any]) -> list[str]:
    """What transformers' loading report says of keys that are missing, unexpected or of another shape."""
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return [f"{kind}: {', '.join(sorted(map(str, report[kind])))}" for kind in kinds if report.get(kind)]


def make_model(kind: type[Any], config: PreTrainedConfig, **options: Any) -> Any:
    """A model of transformers from a config, with random weights. kind: one of the Auto classes, or the class of a model.

    On meta no weight is drawn: it would cost time and hold no number.
    """
    import torch
    from transformers.initialization import no_init_weights

    with no_init_weights() if torch.get_default_device().type == "meta" else nullcontext():
        if hasattr(kind, "from_config"):
            return kind.from_config(config, trust_remote_code=False, **options)
        return kind(config, **options)


def require_countable_layers(raw: object, where: object) -> None:
    """Raise `CheckpointError` for settings with more layers than any model has, before layers are built."""
    for key, value in iterate_entries(raw):
        numbers = value if isinstance(value, list) else [value]
        if key.endswith(_REPEATED) and any(isinstance(n, int | float) and n > MAX_REPEATS for n in numbers):
            raise CheckpointError(f"{where}: {key}={value}; no model has more than {MAX_REPEATS} of these.")


def iterate_entries(raw: object) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested settings."""
    waiting: list[object] = [raw]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield from ((str(k), v) for k, v in value.items())
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


# Checks of a folder ----------------------------------------------------------------------------------------------


def _require_readable(source: str | Path, needs: str = "") -> None:
    """Raise `CheckpointError` if a file of a local folder is missing or damaged. Hub ids are not checked."""
    folder = Path(source)
    if not folder.is_dir():
        return
    if needs:
        read_object(folder / needs)
    for name in SETTINGS:
        if (folder / name).exists():
            read_local_config(folder) if name == CONFIG else read_object(folder / name)
    if (folder / INDEX).exists():
        list_shards(folder / INDEX)


def list_shards(index: Path) -> list[str]:
    """The weight files in an index, all in its folder. Raises `CheckpointError` for a damaged index or a missing file."""
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} says no file for each tensor (weight_map); it is truncated or damaged.")
    shards = sorted(set(names.values()))
    if outside := [name for name in shards if Path(name).name != name]:
        raise CheckpointError(f"{index} names files outside of its folder: {', '.join(outside)}.")
    if missing := [name for name in shards if not (index.parent / name).is_file()]:
        raise CheckpointError(f"{index.parent}: {index.name} names files that are missing: {', '.join(missing)}.")
    return shards


def _refuse_code(raw: Mapping[str, Any], where: object) -> None:
    """Raise `CheckpointError` for an attention kernel of the hub in a config: transformers would fetch and run its code."""
    for key, value in iterate_entries(raw):
        named = value.values() if isinstance(value, Mapping) else [value]
        if key in ATTENTION and any(isinstance(name, str) and "/" in name for name in named):
            raise CheckpointError(
                f"{where}: {key}={value!r} names code on the hub, and mmblocks runs no code of a checkpoint; "
                "remove the entry."
            )


# Errors ----------------------------------------------------------------------------------------------------


@contextmanager
def convert_checkpoint_errors(source: object, file: str = "") -> Iterator[None]:
    """Turn any error of other packages about a checkpoint into a `CheckpointError` that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except MMBlocksError:
        raise
    except SafetensorError as cause:
        raise CheckpointError(
            f"{source}: a weights file cannot be read ({cause}); it is truncated or damaged."
        ) from cause
    except Exception as cause:  # for a damaged file transformers and tokenizers may raise anything
        raise CheckpointError(_describe_read_error(str(source), file, cause)) from cause


def _describe_read_error(source: str, file: str, cause: Exception) -> str:
    reason = str(cause) if isinstance(cause, OSError | ValueError) else f"{type(cause).__name__}: {cause}"
    if "trust_remote_code" in reason:
        return (
            f"{source} needs Python code of its own to be read (auto_map), and mmblocks runs no code of a checkpoint. "
            "Take a checkpoint of a family that transformers itself has, or a transformers that has this one "
            "(pip install --upgrade transformers)."
        )
    if Path(source).is_absolute() and not Path(source).exists():
        return f"the checkpoint {source!r} cannot be read: there is no such folder"
    if Path(source).exists() or source.count("/") != 1 or source.startswith((".", "~")):
        return f"{source}{file and f'/{file}'} cannot be read: {reason}"
    command = f"hf download {source} {file}".rstrip()
    first = reason.partition("\n")[0]
    return f"{source} is not on this machine and cannot be fetched. With a network: {command} ({first})"
