"""A trained model on a new file: rows that a CSV can hold.

text    offset, token, bits        the surprise -log2 p(token | what stands before it in its window) of each token
series  step, one column a variate the forecast after the file's last rows, in the data's own units
images  file, label, confidence, one column a class: its probability
table   row, label, confidence, one column a class; or one column a target
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROWS = 32  # inputs computed at once


def predict(model: Any, source: Any, file: str) -> list[dict[str, Any]]:
    """One dictionary a row, all with the same keys.

    Raises DataError, with what to do, where the file can't be read as the training data were."""
    model.eval()
    with torch.no_grad():
        if source.head == "lm":
            return list(_surprises(model, source, file))
        inputs, labels = source.read(file)
        device = next(model.parameters()).device
        outputs = torch.cat([model(part.to(device)).float().cpu() for part in inputs.split(ROWS)])
    if source.head == "forecast":
        return [
            {"file": label, "step": step, **dict(zip(source.names, row, strict=True))}
            for label, forecast in zip(labels, source.unscale(outputs), strict=True)
            for step, row in enumerate(forecast.tolist(), 1)
        ]
    key = "file" if source.embed == "patches" else "row"
    if source.head == "classify":
        rows = []
        for label, chances in zip(labels, torch.softmax(outputs, -1).tolist(), strict=True):
            best = max(range(len(chances)), key=chances.__getitem__)
            each = {f"p({name})": p for name, p in zip(source.names, chances, strict=True)}
            rows.append({key: label, "label": source.names[best], "confidence": chances[best], **each})
        return rows
    values = source.unscale(outputs) if source.scale is not None else outputs.numpy()
    return [
        {key: label, **dict(zip(source.names, row, strict=True))}
        for label, row in zip(labels, values.tolist(), strict=True)
    ]


def _surprises(model: Any, source: Any, file: str) -> Iterator[dict[str, Any]]:
    from formwright.data import DataError

    source.encode("")  # raises where the tokens stand for no text
    path = Path(file)
    if not path.is_file():
        raise DataError(f"there is no file {file} to score")
    # Bytes that are no UTF-8 are kept as they are by a model of bytes.
    bytewise = source.facts["vocab"] == 256
    try:
        ids = list(path.read_bytes()) if bytewise else source.encode(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 at byte {error.start}; convert it, as this model reads pieces of text"
        ) from error
    if not ids:
        raise DataError(f"{file} is empty; give a text")
    # Token 0 ends a document: the first token of the file is judged as the first of a new one.
    stream = torch.tensor([0, *ids], device=next(model.parameters()).device)
    length = source.shape[0]
    for start in range(0, len(ids), length):
        window = stream[start : start + length + 1]
        logits = model(window[None, :-1])[0].float()
        bits = F.cross_entropy(logits, window[1:], reduction="none") / math.log(2)
        for i, value in enumerate(bits.tolist()):
            yield {"offset": start + i, "token": source.decode([ids[start + i]]), "bits": value}
