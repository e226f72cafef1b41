"""Racing architectures: `race(["attention", "mamba2"], "notes.txt", budget="10m")`."""

from __future__ import annotations

import importlib
from typing import Any

# Found on first use: reading the store of races must not import torch.
_HOMES = {
    "race": "formwright.race.racing",
    "RaceProblem": "formwright.race.contenders",
    "generate": "formwright.race.generate",
    "predict": "formwright.race.predict",
    "trained": "formwright.race.trained",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'formwright.race' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
