"""The HMAC of RFC 2104, with its key hashed once."""

from __future__ import annotations

import hmac

import pytest

from label_service.log.entry_mac import Hmac


@pytest.mark.parametrize("key", [b"", b"k", bytes(range(32)), b"\xff" * 64])
def test_the_hmac_is_that_of_the_standard_library(key: bytes) -> None:
    """One object makes it of many texts, in any order."""
    fast = Hmac(key)
    for data in (b"what do ya want for nothing?", b"", bytes(1000), b"what do ya want for nothing?"):
        assert fast.digest(data) == hmac.digest(key, data, "sha256")
