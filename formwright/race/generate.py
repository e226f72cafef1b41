"""Text from a trained language model, token by token.

p(next) = softmax(logits / temperature), over the top_k likeliest tokens where that is given
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from formwright.contract import Unsupported


def generate(
    model: Any,
    source: Any,
    prompt: str,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The text that the model writes after `prompt`, of `tokens` tokens (without the prompt itself).

    temperature  0 takes the likeliest token each time
    on_text      is given the text so far, again and again while it grows

    Raises DataError where the source is no text, ValueError for options that make no sense."""
    ids = source.encode(prompt) or [0]  # token 0 ends a document: after it a new one begins
    made: list[int] = []
    for token in continue_tokens(model, ids, tokens, temperature=temperature, top_k=top_k, seed=seed):
        made.append(token)
        if on_text is not None:
            on_text(source.decode(made))
    return source.decode(made)


def continue_tokens(
    model: Any, ids: list[int], tokens: int, *, temperature: float = 0.8, top_k: int | None = None, seed: int = 0
) -> Iterator[int]:
    """The tokens that follow `ids`, one after another, drawn from `seed`."""
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}, but at least one token must be asked for")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, but must be 0 (the likeliest token) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, but must be at least 1")
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    step = _stepper(model, len(ids) + tokens)
    model.eval()
    new = torch.tensor([ids], device=device)
    for _ in range(tokens):
        with torch.no_grad():
            logits = step(new)
        token = _draw(logits.float().cpu(), temperature, top_k, random)
        yield token
        new = torch.tensor([[token]], device=device)


def _stepper(model: Any, capacity: int) -> Callable[[Tensor], Tensor]:
    """A function from further tokens (1, T) to the logits (vocab,) after them: by the model's state, or, for a mixer of
    the user's that can't extend one, by a forward over all tokens so far."""
    try:
        state = model.empty(1, capacity)
        model.extend(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device), state)
        state = model.empty(1, capacity)
    except Unsupported as reason:
        if reason.option != "extend" or not model.causal:
            raise
        seen: list[Tensor] = []

        def whole(new: Tensor) -> Tensor:
            seen.append(new)
            return model(torch.cat(seen, 1))[0, -1]

        return whole

    def extended(new: Tensor) -> Tensor:
        nonlocal state
        outputs, state = model.extend(new, state)
        return outputs[0, -1]

    return extended


def _draw(logits: Tensor, temperature: float, top_k: int | None, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=random))
