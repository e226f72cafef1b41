"""Checkpoints that are whole or absent.

A checkpoint is a folder `checkpoint-<number>`: safetensors files (model, optimizer, ...) and one state.json. It is
written under another name, every file and the folder are flushed to the disk, and only then the folder gets its name in
one rename. A kill at any moment leaves the last complete checkpoint in place; older ones go once a newer one stands.
Numbers only rise, so the highest is the latest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NAME = re.compile(r"checkpoint-(\d+)")
UNFINISHED = ".writing-"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or gone on from; the message says what to do."""


def write(folder: str | Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write one checkpoint of named tensor files and a JSON state; returns its folder. Older ones are removed.

    Raises CheckpointError where the disk refuses; what was there before is then still whole."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    number = 1 + max((n for n, _ in _complete(folder)), default=-1)
    temporary = folder / f"{UNFINISHED}{number:08d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        temporary.mkdir()
        for name, members in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: _storable(value) for key, value in members.items()}, path)
            _flush(path)
        path = temporary / "state.json"
        path.write_text(json.dumps(state), encoding="utf-8")
        _flush(path)
        _flush(temporary)
        final = folder / f"checkpoint-{number:08d}"
        os.replace(temporary, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"cannot write a checkpoint into {folder} ({reason}): free some space there, or choose a folder that can "
            "be written; an earlier checkpoint, if any, is still whole"
        ) from error
    for other, path in _complete(folder):
        if other < number:
            shutil.rmtree(path, ignore_errors=True)
    return final


def latest(folder: str | Path) -> Path | None:
    """The last complete checkpoint in `folder`, or None."""
    found = _complete(Path(folder))
    return max(found)[1] if found else None


def read(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """A checkpoint's (tensors by file, state).

    Raises CheckpointError where a file of it is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}, state
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error}): remove that folder to start the run afresh"
        ) from error


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each tensor once though it may have several names."""
    seen: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name} is a {type(value).__name__}: only tensors can be kept in a checkpoint")
        if seen.setdefault(id(value), name) == name:
            found[name] = value
    return found


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments and counters, named `<parameter>/<moment>`."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(p)]}/{moment}": value for p, members in optimizer.state.items() for moment, value in members.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]) -> None:
    """Put stored moments back into an optimizer that has made no step yet."""
    parameters = dict(model.named_parameters())
    for key, value in stored.items():
        name, moment = key.rsplit("/", 1)
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has moments of {name}, which this model does not have")
        parameter = parameters[name]
        if value.ndim == parameter.ndim + 1 and parameter.is_complex():
            value = torch.view_as_complex(value)
        # AdamW's step counter lives on the CPU unless the optimizer is fused; moments live beside their parameter.
        apart = moment == "step" and not optimizer.defaults.get("fused")
        optimizer.state[parameter][moment] = value if apart else value.to(parameter.device)


def copy_tensors(stored: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy tensors by name into others of the same names and shapes.

    Raises CheckpointError where names or shapes differ."""
    if stored.keys() != target.keys():
        differing = sorted(stored.keys() ^ target.keys())
        raise CheckpointError(f"the checkpoint is of another model: they differ in {', '.join(differing[:5])}")
    with torch.no_grad():
        for name, tensor in target.items():
            value = stored[name]
            if tensor.is_complex() and not value.is_complex():
                value = torch.view_as_complex(value)
            if value.shape != tensor.shape:
                raise CheckpointError(
                    f"the checkpoint is of another model: {name} is {tuple(value.shape)} there, "
                    f"{tuple(tensor.shape)} here"
                )
            tensor.copy_(value)


def _storable(value: Tensor) -> Tensor:
    """A tensor of its own that safetensors takes: real, contiguous, on the CPU."""
    value = value.detach()
    value = torch.view_as_real(value) if value.is_complex() else value
    return value.to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()


def _complete(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return [(int(m[1]), path) for path in folder.iterdir() if (m := NAME.fullmatch(path.name))]


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
