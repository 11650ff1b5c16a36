"""The leaf of a label has one form, however it is written."""

from __future__ import annotations

import pytest

from label_service.log.entries import canonical_json
from label_service.log.evidence import label_leaf


@pytest.mark.parametrize("label_id", [0, 59_999, True])
@pytest.mark.parametrize("label", [0, 9, -1, 3.5, True, "3", None])
@pytest.mark.parametrize("salt", ["ab" * 32, "", 'x","y":"', "é", "²", "\ud800"])
def test_the_leaf_of_a_label_is_its_canonical_json(label_id: int, label: int, salt: str) -> None:
    """Also of what somebody else has written into the database, or into a receipt."""
    assert label_leaf(label_id, label, salt) == canonical_json({"id": label_id, "label": label, "salt": salt})
