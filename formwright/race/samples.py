"""What a trained model does on the test part, to be looked at: text it writes, forecasts over the truth, pictures it
misreads, values it predicts."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch

from formwright.race.generate import continue_tokens

TEXTS, PROMPT, WRITTEN = 2, 64, 192
FORECASTS, VARIATES = 3, 4
PICTURES, LOOKED_AT = 8, 512
ROWS = 200


def samples(model: Any, source: Any, *, seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """[(kind, content)] as the store keeps them; none for synthetic tasks and tokens that stand for no text."""
    model.eval()
    with torch.no_grad():
        if source.head == "lm":
            return _texts(model, source, seed) if source.codec is not None else []
        if source.kind == "synthetic" or source.embed == "tokens":
            return []
        if source.head == "forecast":
            return _forecasts(model, source)
        if source.head == "classify" and source.embed == "patches":
            return _misread(model, source)
        return _values(model, source)


def _texts(model: Any, source: Any, seed: int) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    length = source.shape[0]
    prompt = min(PROMPT, max(1, length // 4))
    for batch in source.evaluation("test", 1, TEXTS):
        ids = batch.inputs[0, :prompt].tolist()
        made = list(continue_tokens(model, ids, min(WRITTEN, length - prompt), temperature=0.8, seed=seed))
        rows.append(("text", {"prompt": source.decode(ids), "generated": source.decode(made)}))
    return rows


def _forecasts(model: Any, source: Any) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for batch in source.evaluation("test", 1, FORECASTS):
        made = model(batch.inputs.to(_device(model))).float().cpu()
        parts = {"history": batch.inputs, "truth": batch.targets, "forecast": made}
        content = {name: source.unscale(part[0])[:, :VARIATES].tolist() for name, part in parts.items()}
        rows.append(("forecast", {**content, "names": source.names[:VARIATES]}))
    return rows


def _misread(model: Any, source: Any) -> list[tuple[str, dict[str, Any]]]:
    """The pictures misread with the greatest confidence."""
    found: list[tuple[float, Any, int, int]] = []
    for batch in source.evaluation("test", 64, LOOKED_AT):
        sure, chosen = torch.softmax(model(batch.inputs.to(_device(model))).float().cpu(), -1).max(-1)
        for i in torch.nonzero(chosen != batch.targets).flatten().tolist():
            found.append((float(sure[i]), batch.inputs[i], int(batch.targets[i]), int(chosen[i])))
    found.sort(key=lambda row: -row[0])
    rows = []
    for confidence, picture, truth, chosen in found[:PICTURES]:
        content = {
            "png": _png(source.picture(picture)),
            "truth": source.names[truth],
            "predicted": source.names[chosen],
        }
        rows.append(("image", {**content, "confidence": confidence}))
    return rows


def _values(model: Any, source: Any) -> list[tuple[str, dict[str, Any]]]:
    truth: list[Any] = []
    predicted: list[Any] = []
    for batch in source.evaluation("test", 64, ROWS):
        made = model(batch.inputs.to(_device(model))).float().cpu()
        if source.head == "classify":
            truth += [source.names[i] for i in batch.targets.tolist()]
            predicted += [source.names[i] for i in made.argmax(-1).tolist()]
        else:
            truth += _units(source, batch.targets)
            predicted += _units(source, made)
    return [("table", {"truth": truth, "predicted": predicted, "name": (source.names or ["value"])[0]})]


def _units(source: Any, values: torch.Tensor) -> list[float]:
    """The first output of (B, outputs), in the data's own units."""
    return (source.unscale(values) if source.scale is not None else values.numpy())[:, 0].tolist()


def _png(pixels: Any) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
