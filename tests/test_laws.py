"""The laws over the register: each part under each law."""

from __future__ import annotations

import pytest

from formwright import check, parts
from formwright.contract import KINDS

PARTS = [name for kind in KINDS if kind != "wiring" for name in parts.names(kind)]


@pytest.mark.parametrize("law", list(check.LAWS))
@pytest.mark.parametrize("part", PARTS)
def test_law(part, law):
    (found,) = check.run(part, laws=[law]).laws
    if found.status == "skip":
        pytest.skip(found.detail)
    assert found.status != "fail", found.detail
    assert "but the card says" not in found.detail
