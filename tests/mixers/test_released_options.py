"""All laws over options that released models need; tests/test_laws.py runs them over the parts as they come."""

from __future__ import annotations

import pytest

from formwright import check

OPTIONS = [
    "lightning(lrpe=False, silu_values=True, gate='sigmoid')",
    "kda(gate_rank='full', lower_bound=-5)",
    "gated_deltanet(heads=4, key_heads=2)",
    "mamba2(groups=2, norm_before_gate=True, least_step=0.05, bias=True)",
]


@pytest.mark.parametrize("law", list(check.LAWS))
@pytest.mark.parametrize("part", OPTIONS)
def test_law(part, law):
    (found,) = check.run(part, laws=[law]).laws
    if found.status == "skip":
        pytest.skip(found.detail)
    assert found.status == "pass", found.detail
    assert "but the card says" not in found.detail
