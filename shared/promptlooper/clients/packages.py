"""Packages that only some of the client needs."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingPackage(ImportError):
    """A package is not installed; the message says how to install it."""


def needed(module: str, what: str, install: str) -> ModuleType:
    """The module, imported now. Raises MissingPackage: `what` needs it, and `pip install INSTALL` brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        said = f"{what} needs a package that is not installed ({error.name}): pip install {install}"
        raise MissingPackage(said, name=error.name) from error
