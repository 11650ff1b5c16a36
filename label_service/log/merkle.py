"""The Merkle tree of RFC 6962: hashes, proofs, and the verification of proofs.

A Merkle tree has one root hash over all its leaves. An inclusion proof shows that a leaf is in the tree with a given
root; a consistency proof shows that a larger tree begins with exactly the leaves of a smaller one.

`MerkleTree` keeps the hashes of all complete subtrees, so that appending a leaf, computing a root and making a proof
each cost O(log n) hashes. The functions that verify a proof need no tree. All hashes are SHA-256, 32 bytes.

Sources: B. Laurie, A. Langley, E. Kasper, RFC 6962 (2013), section 2.1, for tree and proofs; RFC 9162 (2021), sections
2.1.3.2 and 2.1.4.2, for the verification of proofs.
"""

import binascii
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import count

HASH_BYTES = 32
_PAIR_BYTES = 2 * HASH_BYTES
# More than the proofs of a few sizes need; a tree of 2^32 leaves has 32 for a size.
_MOST_RAGGED = 1024
# Root of the empty tree: the hash of no bytes.
EMPTY_ROOT = sha256(b"").digest()


class VerificationError(Exception):
    """A proof, a signature or an entry does not hold; the message is one sentence that says which."""


def leaf_hash(data: bytes) -> bytes:
    """Hash a leaf. The prefix 0 keeps a leaf from being taken for an inner node."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash an inner node of two children."""
    return sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """Return the number of leaves of the left subtree: the largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def encode_base64(data: bytes) -> str:
    """Return bytes, such as a hash, as base64."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


class MerkleTree:
    """An append-only tree. Roots and proofs are available for its present size and every earlier one.

    Attributes:
        size: number of leaves.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        # Hash i of _levels[k] is over leaves [i 2^k, (i + 1) 2^k), once all of them are there. They lie side by side,
        # because an object for each would take twice the memory.
        self._levels = [bytearray()]
        # Hashes over leaves [start, end) that fill no subtree. They stand in all proofs of one size and never change.
        self._ragged: dict[tuple[int, int], bytes] = {}
        self.extend(leaf_hashes)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Append the hash of a leaf. This costs O(1) hashes on average and O(log n) at most."""
        self.extend([leaf])

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append the hashes of many leaves, one level after the other: the same tree in less time."""
        self._levels[0] += b"".join(leaves)
        for level in count():
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            below, above = self._levels[level], self._levels[level + 1]
            pairs = bytes(below[2 * len(above) :])
            if len(pairs) < _PAIR_BYTES:
                return
            ends = range(_PAIR_BYTES, len(pairs) + 1, _PAIR_BYTES)
            above += b"".join([sha256(b"\x01" + pairs[end - _PAIR_BYTES : end]).digest() for end in ends])

    def leaf(self, index: int) -> bytes:
        """Return the hash of a leaf.

        Raises:
            IndexError: there is no such leaf.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"a tree of {self.size} leaves has no leaf {index}")
        return self._hash(0, index)

    def root(self, size: int | None = None) -> bytes:
        """Return the root, at the present size or an earlier one.

        Raises:
            ValueError: the tree is smaller than `size`.
        """
        size = self.size if size is None else size
        self._require(0 <= size <= self.size, f"a tree of {self.size} leaves has no root at size {size}")
        return EMPTY_ROOT if size == 0 else self._subtree(0, size)

    def subtree_roots(self, width: int) -> bytes:
        """Return the hashes over each `width` leaves, a power of two, side by side; the last is over what remains.

        They are the leaf hashes of a tree with the same root.
        """
        complete = self.size // width
        roots = bytes(self._levels[width.bit_length() - 1]) if complete else b""
        rest = self._subtree(complete * width, self.size) if self.size % width else b""
        return roots + rest

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the proof that a leaf is in the tree of a size: the siblings on its way to the root, lowest first.

        Raises:
            ValueError: there is no such leaf or size.
        """
        size = self.size if size is None else size
        self._require(0 <= index < size <= self.size, f"no leaf {index} in size {size} of a tree of {self.size}")
        proof: list[bytes] = []
        node, last, level = index, size - 1, 0
        while last > 0:
            sibling = node ^ 1
            if sibling <= last:
                complete = (sibling + 1) << level <= size
                proof.append(self._hash(level, sibling) if complete else self._subtree(sibling << level, size))
            node, last, level = node >> 1, last >> 1, level + 1
        return proof

    def consistency_proof(self, first: int, second: int | None = None) -> list[bytes]:
        """Return the proof that the tree of the second size begins with the tree of the first.

        Raises:
            ValueError: there are no such sizes.
        """
        second = self.size if second is None else second
        self._require(0 <= first <= second <= self.size, f"no sizes {first} to {second} in a tree of {self.size}")
        if first in (0, second):
            return []
        proof: list[bytes] = []
        start, end = 0, second
        while end != first:
            middle = start + _split(end - start)
            if first <= middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                proof.append(self._subtree(start, middle))
                start = middle
        # The last complete subtree of the smaller tree. If it is that whole tree, the verifier knows its root already.
        if start > 0:
            proof.append(self._subtree(start, end))
        return proof[::-1]

    def _subtree(self, start: int, end: int) -> bytes:
        """Return the hash over leaves [start, end); `start` is a multiple of the power of two that covers the width."""
        width = end - start
        if width & (width - 1) == 0:
            return self._hash(width.bit_length() - 1, start // width)
        hash_ = self._ragged.get((start, end))
        if hash_ is None:
            middle = start + _split(width)
            hash_ = node_hash(self._subtree(start, middle), self._subtree(middle, end))
            if len(self._ragged) >= _MOST_RAGGED:
                self._ragged.clear()
            self._ragged[start, end] = hash_
        return hash_

    def _hash(self, level: int, index: int) -> bytes:
        return bytes(self._levels[level][HASH_BYTES * index : HASH_BYTES * (index + 1)])

    @staticmethod
    def _require(holds: bool, complaint: str) -> None:
        if not holds:
            raise ValueError(complaint)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Verify that a leaf hash is at `index` in the tree of `size` leaves with this root (RFC 9162, section 2.1.3.2).

    Raises:
        VerificationError: the proof does not show it.
    """
    if not 0 <= index < size:
        raise VerificationError(f"leaf {index} cannot be in a tree of {size} leaves")
    _check_widths([leaf, root, *proof])
    computed = leaf
    for sibling, is_left in _climb(index, size - 1, proof, "inclusion"):
        computed = node_hash(sibling, computed) if is_left else node_hash(computed, sibling)
    if computed != root:
        raise VerificationError(f"leaf {index} is not in the tree of {size} leaves with this root")


def verify_consistency(first: int, second: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Verify that the tree of `second` leaves begins with the tree of `first` leaves (RFC 9162, section 2.1.4.2).

    Args:
        first: number of leaves of the smaller tree, at least 1.
        second: number of leaves of the larger tree.
        root1: root of the smaller tree.
        root2: root of the larger tree.
        proof: hashes, lowest first.

    Raises:
        VerificationError: the proof does not show it.
    """
    if not 1 <= first <= second:
        raise VerificationError(f"no proof can show that a tree of {second} leaves begins with one of {first}")
    if first == second:
        if proof:
            raise VerificationError("the consistency proof is too long")
        if root1 != root2:
            raise VerificationError(f"there are two different trees of {first} leaves")
        return
    _check_widths([root1, root2, *proof])
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, root1)
    if not path:
        raise VerificationError("the consistency proof is too short")
    node, last = first - 1, second - 1
    while node % 2 == 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling, is_left in _climb(node, last, path[1:], "consistency"):
        old = node_hash(sibling, old) if is_left else old
        new = node_hash(sibling, new) if is_left else node_hash(new, sibling)
    if old != root1:
        raise VerificationError(f"the tree of {second} leaves does not begin with the tree of {first}")
    if new != root2:
        raise VerificationError(f"the consistency proof does not lead to the root at {second} leaves")


def _climb(node: int, last: int, proof: Sequence[bytes], kind: str) -> Iterator[tuple[bytes, bool]]:
    """Yield each hash of a proof and whether it is the left sibling, from node `node` of `last` + 1 up to the root.

    Raises:
        VerificationError: the proof ends before or after the root.
    """
    for sibling in proof:
        if last == 0:
            raise VerificationError(f"the {kind} proof is too long")
        is_left = node % 2 == 1 or node == last
        yield sibling, is_left
        # A node at the right edge without a sibling stands for its parent too.
        while is_left and node % 2 == 0 and node != 0:
            node, last = node >> 1, last >> 1
        node, last = node >> 1, last >> 1
    if last != 0:
        raise VerificationError(f"the {kind} proof is too short")


def _check_widths(hashes: Iterable[bytes]) -> None:
    if any(len(hash_) != HASH_BYTES for hash_ in hashes):
        raise VerificationError(f"a hash that is not {HASH_BYTES} bytes long")
