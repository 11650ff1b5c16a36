"""The Merkle tree of RFC 6962: hashes, proofs and their verification, as pure functions over bytes.

Source: B. Laurie, A. Langley, E. Kasper, RFC 6962 (2013), section 2.1; the verification algorithms are those of
RFC 9162 (2021), sections 2.1.3.2 and 2.1.4.2. SHA-256 throughout; every hash is 32 bytes.

`MerkleTree` keeps the hashes of all complete subtrees, so that appending, a root and a proof cost O(log n) hashes. The
functions over a list of leaf hashes build one and ask it.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence

HASH_BYTES = 32
# Root of the tree without a leaf: the hash of nothing.
EMPTY_ROOT = hashlib.sha256(b"").digest()


class VerificationError(Exception):
    """Something that was to be proved does not hold; the message is one sentence that says what."""


def leaf_hash(data: bytes) -> bytes:
    """Hash a leaf: the prefix 0 keeps a leaf from posing as an inner node."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash an inner node of two children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """Answer the largest power of two below `size` (at least 2): where a tree parts into left and right."""
    return 1 << ((size - 1).bit_length() - 1)


def encode_hash(one: bytes) -> str:
    """Write a hash as base64, as answers and notes carry it."""
    return base64.b64encode(one).decode("ascii")


class MerkleTree:
    """An append-only tree that answers for any of its former sizes too.

    Attributes:
        size: number of leaves.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        # _levels[k][i] is the hash of leaves [i 2^k, (i + 1) 2^k), once all of them are there.
        self._levels: list[list[bytes]] = [[]]
        for one in leaf_hashes:
            self.append(one)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash at the end: O(1) hashes on average, O(log n) at most."""
        self._levels[0].append(leaf)
        level = 0
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(node_hash(*self._levels[level][-2:]))
            level += 1

    def leaf(self, index: int) -> bytes:
        """Answer a leaf's hash; IndexError if there is none."""
        return self._levels[0][index]

    def root(self, size: int | None = None) -> bytes:
        """Answer the root, now or at a former size.

        Raises:
            ValueError: the tree is smaller.
        """
        size = self.size if size is None else size
        self._require(0 <= size <= self.size, f"a tree of {self.size} leaves has no root at size {size}")
        return EMPTY_ROOT if size == 0 else self._subtree(0, size)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Prove that a leaf is in the tree of a size: its siblings on the way to the root, nearest first.

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
                proof.append(self._levels[level][sibling] if complete else self._subtree(sibling << level, size))
            node, last, level = node >> 1, last >> 1, level + 1
        return proof

    def consistency_proof(self, first: int, second: int | None = None) -> list[bytes]:
        """Prove that the tree of the second size begins with the tree of the first.

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
        # The old tree's last complete subtree; a verifier knows it already where it is the whole old tree.
        if start > 0:
            proof.append(self._subtree(start, end))
        return proof[::-1]

    def _subtree(self, start: int, end: int) -> bytes:
        """Hash leaves [start, end); `start` is a multiple of the power of two that covers the width."""
        width = end - start
        if width & (width - 1) == 0:
            return self._levels[width.bit_length() - 1][start // width]
        middle = start + _split(width)
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))

    @staticmethod
    def _require(holds: bool, complaint: str) -> None:
        if not holds:
            raise ValueError(complaint)


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Answer the root of leaf hashes in order."""
    return MerkleTree(leaf_hashes).root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Prove that leaf `index` is among the leaf hashes; ValueError if it is not."""
    return MerkleTree(leaf_hashes).inclusion_proof(index)


def consistency_proof(leaf_hashes: Sequence[bytes], first: int, second: int) -> list[bytes]:
    """Prove that the first `second` leaves begin with the first `first`; ValueError if there are not as many."""
    return MerkleTree(leaf_hashes).consistency_proof(first, second)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf hash is at `index` of the tree of `size` leaves with this root.

    Raises:
        VerificationError: it is not shown to be.
    """
    if not 0 <= index < size:
        raise VerificationError(f"leaf {index} cannot be in a tree of {size} leaves")
    _check_widths([leaf, root, *proof])
    node, last = index, size - 1
    computed = leaf
    for sibling in proof:
        if last == 0:
            raise VerificationError("the inclusion proof is too long")
        if node % 2 == 1 or node == last:
            computed = node_hash(sibling, computed)
            # A lone node at the right edge rises without a sibling.
            while node % 2 == 0 and node != 0:
                node, last = node >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise VerificationError("the inclusion proof is too short")
    if computed != root:
        raise VerificationError(f"leaf {index} is not in the tree of {size} leaves with this root")


def verify_consistency(first: int, second: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Check that a tree of `second` leaves with `root2` begins with the tree of `first` leaves with `root1`.

    Raises:
        VerificationError: it is not shown to.
    """
    if not 1 <= first <= second:
        raise VerificationError(f"a tree of {second} leaves does not grow from one of {first} in a way to prove")
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
    for sibling in path[1:]:
        if last == 0:
            raise VerificationError("the consistency proof is too long")
        if node % 2 == 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while node % 2 == 0 and node != 0:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise VerificationError("the consistency proof is too short")
    if old != root1:
        raise VerificationError(f"the tree of {second} leaves does not begin with the tree of {first}")
    if new != root2:
        raise VerificationError(f"the consistency proof does not lead to the root at {second} leaves")


def _check_widths(hashes: Iterable[bytes]) -> None:
    if any(len(one) != HASH_BYTES for one in hashes):
        raise VerificationError(f"a hash that is not {HASH_BYTES} bytes long")
