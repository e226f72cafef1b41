"""Whole language models of Hugging Face transformers beside the zoo's expressions of them: same weights, same logits,
as many parameters, and the same logits token by token with a cache."""

from __future__ import annotations

import pytest
import torch
from agreement import TOLERANCE
from language_models import BERT, LANGUAGES, T5, VOCAB, Language
from torch import Tensor, nn

from formwright import build
from formwright.contract import Layout, parameter_count
from formwright.model import Model

TOKENS = 23


def pair(case: Language) -> tuple[nn.Module, Model]:
    """Theirs with random weights, and ours with the same; as many parameters in both."""
    torch.manual_seed(0)
    theirs = case.theirs().eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            scale = "norm" in name.lower() or "ln_" in name or name.endswith(".D")
            p.normal_(0.5, 0.2) if scale else p.normal_(0, p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3)
        for p in case.spare(theirs):
            p.zero_()
    ours = build(case.expression, facts={"vocab": VOCAB}).eval()
    ours.load_state_dict(case.weights(theirs, ours), strict=True)
    spare = sum(p.numel() for p in case.spare(theirs))
    assert parameter_count(ours) == sum(p.numel() for p in theirs.parameters()) - spare + case.added
    return theirs, ours


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", LANGUAGES)
def test_same_logits(name):
    theirs, ours = pair(LANGUAGES[name])
    tokens = torch.randint(VOCAB, (2, TOKENS))
    with torch.no_grad():
        close(ours(tokens), theirs(tokens).logits)


@pytest.mark.parametrize("name", LANGUAGES)
def test_same_logits_step_by_step(name):
    theirs, ours = pair(LANGUAGES[name])
    tokens = torch.randint(VOCAB, (2, TOKENS))
    with torch.no_grad():
        whole, cached = theirs(tokens).logits, theirs(tokens[:, :9], use_cache=True)
        logits, state = ours.extend(tokens[:, :9], ours.empty(2, TOKENS))
        close(logits, cached.logits)
        for t in range(9, TOKENS):
            logits, state = ours.extend(tokens[:, t : t + 1], state)
            close(logits, whole[:, t : t + 1])
            if "past_key_values" in cached:  # RecurrentGemma gives none back
                past = cached.past_key_values
                cached = theirs(tokens[:, t : t + 1], past_key_values=past, use_cache=True)
                close(logits, cached.logits)


def test_bert_with_padding_and_segments():
    theirs, ours = pair(BERT)
    tokens, segments = torch.randint(VOCAB, (2, TOKENS)), torch.randint(2, (2, TOKENS))
    lengths = torch.tensor([TOKENS, 11])
    seen = torch.arange(TOKENS) < lengths[:, None]
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=seen.long(), token_type_ids=segments).logits
        found = ours(torch.stack([tokens, segments], -1), Layout((TOKENS,), lengths=lengths))
        close(found[seen], expected[seen])
        close(ours(tokens), theirs(tokens).logits)


def test_t5_whole_and_step_by_step():
    theirs, ours = pair(T5)
    source, target = torch.randint(VOCAB, (2, 31)), torch.randint(VOCAB, (2, TOKENS))
    with torch.no_grad():
        expected = theirs(input_ids=source, decoder_input_ids=target).logits
        close(ours((source, target)), expected)
        state, logits = ours.empty(2, TOKENS, source), []
        cached = theirs(input_ids=source, decoder_input_ids=target[:, :1], use_cache=True)
        for t in range(TOKENS):
            step, state = ours.extend(target[:, t : t + 1], state)
            if t:
                past = {
                    "encoder_outputs": (cached.encoder_last_hidden_state,),
                    "past_key_values": cached.past_key_values,
                }
                cached = theirs(decoder_input_ids=target[:, t : t + 1], use_cache=True, **past)
            close(step, cached.logits)
            logits.append(step)
        close(torch.cat(logits, 1), expected)
