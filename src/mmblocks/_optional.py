"""Import optional packages where they are used; the error says how to install them."""

import importlib
from types import ModuleType

from mmblocks.errors import MissingDependencyError


def import_optional(package: str, *, to: str, extra: str | None = None) -> ModuleType:
    """Import `package`, or raise `MissingDependencyError` saying what it is needed `to` do and how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as cause:
        install = f"mmblocks[{extra}]" if extra else package.partition(".")[0]
        raise MissingDependencyError(
            f"{to} needs the package '{package}', which cannot be imported ({cause}); run: pip install '{install}'"
        ) from cause
