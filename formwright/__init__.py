"""Formwright: compose, check, race and ship Transformer-like architectures, each one short expression."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Model": "formwright.model",
    "save": "formwright.model",
    "load": "formwright.model",
    "parse": "formwright.lang",
    "register": "formwright.parts",
}
__all__ = ["__version__", "build", *_HOMES]


def __getattr__(name: str) -> Any:
    # Names are found on first use, so that `import formwright` and `formwright --help` stay fast.
    if name in ("build", "data", "train", "check", "race"):
        return importlib.import_module(f"formwright.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'formwright' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
