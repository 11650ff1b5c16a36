"""The Merkle tree against a literal transcription of RFC 6962's definition."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from label_service.log.merkle import MerkleTree, leaf_hash, verify_consistency, verify_inclusion

datas = st.lists(st.binary(max_size=8), min_size=1, max_size=70)


def largest_power_of_two_below(n: int) -> int:
    """Return the power of two k with k < n <= 2k."""
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(entries: list[bytes]) -> bytes:
    """MTH(D[n]) of section 2.1."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = largest_power_of_two_below(len(entries))
    return hashlib.sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: list[bytes]) -> list[bytes]:
    """PATH(m, D[n]) of section 2.1.1."""
    if len(entries) == 1:
        return []
    k = largest_power_of_two_below(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF(m, D[n], b) of section 2.1.2."""
    n = len(entries)
    if m == n:
        return [] if whole else [mth(entries)]
    k = largest_power_of_two_below(n)
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


@given(datas, datas, datas)
def test_many_leaves_together_make_the_same_tree(first: list[bytes], second: list[bytes], third: list[bytes]) -> None:
    """Leaves that are added one by one between others, too."""
    one_by_one, together = MerkleTree(), MerkleTree()
    for number, part in enumerate((first, second, third)):
        for leaf in part:
            one_by_one.append(leaf)
        if number == 1:
            for leaf in part:
                together.append(leaf)
        else:
            together.extend(part)
    assert together.root() == one_by_one.root()
    assert together.size == one_by_one.size
    for index in range(together.size):
        assert together.inclusion_proof(index) == one_by_one.inclusion_proof(index)


@given(datas, st.data())
def test_roots_and_proofs_are_those_of_the_definition(entries: list[bytes], data: st.DataObject) -> None:
    """Root, inclusion proof and consistency proof, byte for byte; the verifiers accept them."""
    leaves = [leaf_hash(entry) for entry in entries]
    n, tree = len(entries), MerkleTree(leaves)
    assert tree.root() == mth(entries)
    index = data.draw(st.integers(0, n - 1))
    assert tree.inclusion_proof(index) == path(index, entries)
    verify_inclusion(leaves[index], index, n, path(index, entries), mth(entries))
    first = data.draw(st.integers(1, n))
    assert tree.consistency_proof(first) == subproof(first, entries, True)
    verify_consistency(first, n, mth(entries[:first]), mth(entries), subproof(first, entries, True))


@given(datas)
def test_appending_one_by_one_is_building_at_once(entries: list[bytes]) -> None:
    """A tree that grows leaf by leaf has the same root at every size, and none the hash of no bytes."""
    tree = MerkleTree()
    assert tree.root() == mth([])
    for size, entry in enumerate(entries, 1):
        tree.append(leaf_hash(entry))
        assert tree.root() == mth(entries[:size])
    assert [tree.leaf(index) for index in range(tree.size)] == [leaf_hash(entry) for entry in entries]
