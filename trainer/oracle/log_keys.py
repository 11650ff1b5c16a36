"""The keys of a log that has replaced its key: each was named by the one before, in a note that it has signed.

The chain begins with the pinned key. The note has three lines: what it is, the number of the log entry that says so,
and the new key. The old key may sign no tree head that covers this entry. The label service has an implementation of
its own, as of all proofs (docs/decisions/0015).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.oracle.answers import KeyRotation
from trainer.oracle.log_proofs import LogKey, LogProofError, TreeHead, UnknownKey

_STATEMENT = re.compile(r"labelmeter/key-rotation\n(0|[1-9][0-9]{0,17})\n([^\n]+)\n", re.ASCII)


@dataclass(frozen=True)
class LogKeys:
    """A pinned key and the keys that replaced it.

    Attributes:
        pinned: The key that was pinned.
        rotations: The replacements since, in order.
    """

    pinned: LogKey
    rotations: tuple[KeyRotation, ...] = ()

    @property
    def newest(self) -> LogKey:
        """The key that signs now."""
        return self._chain()[-1][0]

    def __contains__(self, key: LogKey) -> bool:
        """Return whether a key is the pinned one or one that replaced it."""
        return any(known == key for known, _ in self._chain())

    def follow(self, rotations: Sequence[KeyRotation]) -> LogKeys:
        """Go on from the pinned key over all replacements that a service tells; those before it are not looked at.

        Raises:
            LogProofError: A replacement is not signed by the key before it, or a known one is missing.
        """
        # A claim about keys before the pinned one binds nobody: the pinned key has not signed it.
        starts = [place for place, rotation in enumerate(rotations) if rotation.old_key == self.pinned.vkey]
        followed = LogKeys(self.pinned, tuple(rotations[starts[0] :]) if starts else ())
        followed._chain()
        if followed.rotations[: len(self.rotations)] != self.rotations:
            raise LogProofError("the service no longer tells how the log's key was replaced before")
        return followed

    def open(self, note: str) -> TreeHead:
        """Read a tree head that is signed by the key that was the log's at its size, or by a newer one.

        Raises:
            LogProofError: It is malformed, of another log, or signed by a key that was replaced before.
            UnknownKey: It is signed by none of the keys.
        """
        chain = self._chain()
        for key, last_size in reversed(chain):
            try:
                head = TreeHead.open(note, key)
            except UnknownKey:
                continue
            if last_size is not None and head.size > last_size:
                raise LogProofError(
                    f"the tree head of {head.size} entries is signed by a key that was replaced at entry {last_size}"
                )
            return head
        raise UnknownKey(
            "the tree head is not signed by the log's pinned key" + " or its successors" * (len(chain) > 1)
        )

    def _chain(self) -> list[tuple[LogKey, int | None]]:
        """Return each key with the size of the largest head that it may sign, None for the newest."""
        chain: list[tuple[LogKey, int | None]] = []
        key, last = self.pinned, -1
        for rotation in self.rotations:
            if rotation.old_key != key.vkey:
                raise LogProofError("a key of the log is replaced that was not its key")
            said = _STATEMENT.fullmatch(key.open_note(rotation.statement))
            if said is None or said[2] != rotation.new_key:
                raise LogProofError("the log's key has not signed that another one replaces it")
            former, last = last, int(said[1])
            chain.append((key, last))
            key = LogKey.parse(rotation.new_key)
            if key.name != self.pinned.name or any(key == other for other, _ in chain) or last <= former:
                raise LogProofError("the log's key is replaced by one of another log, or by one from before")
        return [*chain, (key, None)]
