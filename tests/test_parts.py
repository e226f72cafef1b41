"""What the register says of its parts: `formwright card` over all of them."""

from __future__ import annotations

import pytest

from formwright import parts


@pytest.mark.parametrize("name", parts.names())
def test_every_part_has_words_for_itself_and_its_options(name):
    cls = parts.get(name)
    text = parts.describe(cls)
    assert text.startswith(f"{name}  ({cls.card.kind})\n{cls.card.summary}")
    for option in parts.options(cls):
        assert option in ("causal", "rank") or f" {option}" in text


def test_an_option_without_a_default_is_needed():
    assert "vocab  (needed; the data tell it where they can)" in parts.describe(parts.get("tokens"))
    assert "norm=rmsnorm" in parts.describe(parts.get("static_attention"))
