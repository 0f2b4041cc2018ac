"""Repositories of the Hugging Face hub: what a reference names, and its files on this machine.

huggingface_hub downloads, resumes and caches, with its own settings: HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmblocks.errors import CheckpointError, StorageError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model", "SHA256SUMS")
"""Settings, text tokenizers and chat templates."""
_WEIGHTS = ("*.safetensors", "adapter_model.bin", "non_lora_trainables.bin", "mm_projector.bin")
"""Other pickled weights are fetched only where there are no safetensors."""
_OTHER_FILES = (
    *("onnx/*", "openvino/*", "coreml/*", "original/*", "runs/*", "consolidated*"),
    *("training_args.bin", "optimizer*", "scheduler*", "trainer_state.json"),
)
"""The same model in formats that are not read here, and what a trainer left."""


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository, `org/name`, and the branch, tag or commit that `org/name@revision` names; the main branch without one."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubReference | None:
        """None for a text that names no repository, such as a path with more or fewer than two parts."""
        repository, at, revision = text.partition("@")
        if not _REPOSITORY.fullmatch(repository) or ".." in repository or repository.startswith((".", "-")):
            return None
        return None if at and not revision else cls(repository, revision or None)

    @property
    def download_command(self) -> str:
        """What fetches it in a shell."""
        return f"hf download {self.repository}" + (f" --revision {self.revision}" if self.revision else "")

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at one commit, in the hub's cache."""

    folder: Path
    reference: HubReference
    """The repository at that commit."""


def fetch_snapshot(reference: HubReference, *, weights: bool = True, offline: bool = False) -> Snapshot:
    """Download the files of a model that are not on this machine yet; where the hub cannot be reached, the cache serves.

    weights: False fetches only settings, text tokenizers and chat templates. offline: take the cache only. An interrupted
    download is resumed by the next call. Raises `CheckpointError` with what to do, `StorageError` where the disk is full.
    """
    folder = _download_files(reference, (*_SETTINGS, *_WEIGHTS) if weights else _SETTINGS, offline)
    if weights and not any(folder.rglob("*.safetensors")):
        folder = _download_files(reference, (*_SETTINGS, *_WEIGHTS, "*.bin"), offline)
    if not folder.is_dir():
        raise CheckpointError(
            f"{reference.repository} holds no file of a model (config.json, safetensors or .bin); see {_read_endpoint()}/"
            f"{reference.repository}/tree/main, and name a repository in a format of transformers."
        )
    return Snapshot(folder, HubReference(reference.repository, folder.name))


def _download_files(reference: HubReference, patterns: Sequence[str], offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    with _explain_hub_errors(reference, offline):
        return Path(
            snapshot_download(
                reference.repository,
                revision=reference.revision,
                allow_patterns=[*patterns],
                ignore_patterns=[*_OTHER_FILES],
                endpoint=_read_endpoint(),
                local_files_only=offline,
            )
        )


# Errors -------------------------------------------------------------------------------------------------------------


@contextmanager
def _explain_hub_errors(reference: HubReference, offline: bool) -> Iterator[None]:
    """Turn every error of huggingface_hub into one sentence that ends with what to do."""
    from huggingface_hub import errors

    repository, page = reference.repository, f"{_read_endpoint()}/{reference.repository}"
    try:
        yield
    except errors.GatedRepoError as cause:
        raise CheckpointError(
            f"{repository} is gated: accept its terms at {page}, then run `hf auth login` or set HF_TOKEN."
        ) from cause
    except errors.RevisionNotFoundError as cause:
        raise CheckpointError(
            f"{repository} has no revision {reference.revision!r}; its branches, tags and commits are at {page}/tree/main."
        ) from cause
    except errors.RepositoryNotFoundError as cause:
        raise CheckpointError(
            f"{repository} is not on the hub, or is private: check the name at {page}, and for a private repository "
            "run `hf auth login` or set HF_TOKEN."
        ) from cause
    except errors.LocalEntryNotFoundError as cause:
        command = reference.download_command
        cure = f"; fetch it: {command}" if offline else f" and the hub cannot be reached. With a network: {command}"
        raise CheckpointError(f"{reference} is not on this machine{cure}") from cause
    except errors.HFValidationError as cause:
        raise CheckpointError(f"{repository!r} is no name of a repository: {cause}") from cause
    except Exception as cause:  # an interrupted download raises errors of the HTTP library that huggingface_hub has now
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk is full while {reference} is downloaded; HF_HOME moves the hub's cache."
            ) from cause
        raise CheckpointError(
            f"{reference} cannot be downloaded: {cause}. Run the command again: it resumes."
        ) from cause


def _read_endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
