"""Other libraries without CUDA: torchvision beside torch for the CPU, the naive forms of fla without Triton."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import torch


@cache
def declare_vision_operators() -> torch.library.Library | None:
    """Lets torchvision (and with it timm, and transformers where torchvision is installed) be imported.

    A registry's torchvision is built for CUDA. Beside torch for the CPU its operators don't load, and its import asks
    for two of them: they are declared here, without code, so that a call raises. The declarations last as long as what
    is returned; None where the operators load, or there is no torchvision."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    operators = Path(found.origin).with_name("_C.so")
    try:
        torch.ops.load_library(operators)
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


@cache
def naive(op: str) -> ModuleType:
    """fla/ops/{op}/naive.py as a module of its own: it needs torch and einops, the package around it Triton as well.

    Raises ModuleNotFoundError without the package fla-core."""
    found = importlib.util.find_spec("fla")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("there is no package fla here; pip install fla-core")
    path = Path(found.submodule_search_locations[0], "ops", op, "naive.py")
    spec = importlib.util.spec_from_file_location(f"naive_{op.replace('/', '_')}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
