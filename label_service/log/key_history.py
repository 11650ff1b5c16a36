"""The keys of one log: the entries that replace its key, and which key may sign which head.

A log's key is replaced by an entry, in which the old key has signed the new one. From this entry on the new key signs:
a head that covers the entry and is signed by the old key is refused. Whoever pinned a key of the log follows every
later replacement, because each key was named by the one before. Nothing leads the other way: a key is no word for the
keys before it, until a head that it has signed covers the entries that name them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from label_service.log.merkle import VerificationError
from label_service.log.signed_note import SigningKey, Verifier
from label_service.log.tree_head import TreeHead, head_text

# No head begins like this: its first line is the origin of a log, and no log has this one.
_STATEMENT = "labelmeter/key-rotation"
_SEQ = re.compile("0|[1-9][0-9]{0,14}", re.ASCII)


class KeyRotation(BaseModel):
    """What an entry says that replaces the log's key."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    old_key: str
    new_key: str
    statement: str

    @classmethod
    def sign(cls, old: SigningKey, new: Verifier, seq: int) -> KeyRotation:
        """Let the old key sign that the new one replaces it at an entry.

        Args:
            old: the log's key so far.
            new: the key from then on.
            seq: number of the entry that says so.
        """
        statement = old.sign(f"{_STATEMENT}\n{seq}\n{new.vkey}\n")
        return cls(old_key=old.verifier.vkey, new_key=new.vkey, statement=statement)

    @classmethod
    def read(cls, value: object) -> KeyRotation:
        """Read what an entry says, and check that the old key has signed it.

        Raises:
            VerificationError: it is malformed, or the old key has not signed it.
        """
        try:
            rotation = cls.model_validate(value)
        except ValidationError as error:
            raise VerificationError("what it says of the log's key is malformed") from error
        lines = Verifier.from_vkey(rotation.old_key).open(rotation.statement).split("\n")
        if len(lines) != 4 or (lines[0], lines[2], lines[3]) != (_STATEMENT, rotation.new_key, ""):
            raise VerificationError("the log's key has not signed that this key replaces it")
        if not _SEQ.fullmatch(lines[1]):
            raise VerificationError("the number of the entry that replaces the log's key is none")
        return rotation

    @property
    def seq(self) -> int:
        """Number of the entry, which is the size of the largest head that the old key may sign."""
        return int(self.statement.split("\n")[1])


@dataclass(frozen=True)
class KeyHistory:
    """Keys of one log, oldest first.

    Attributes:
        keys: each was named by the one before; the last one signs.
        ends: of each key but the last, the number of the entry that replaced it.
    """

    keys: tuple[Verifier, ...]
    ends: tuple[int, ...] = ()

    @classmethod
    def of(cls, rotations: Sequence[KeyRotation]) -> KeyHistory:
        """Return all keys of a log.

        Args:
            rotations: all of the log, in order, at least one; each as `KeyRotation.read` accepts it.

        Raises:
            VerificationError: they are not one chain.
        """
        keys = tuple(Verifier.from_vkey(key) for key in (rotations[0].old_key, *(one.new_key for one in rotations)))
        ends = tuple(one.seq for one in rotations)
        if [one.old_key for one in rotations] != [key.vkey for key in keys[:-1]] or len({key.name for key in keys}) > 1:
            raise VerificationError("it replaces a key that is not the log's")
        if list(ends) != sorted(set(ends)) or len(set(keys)) < len(keys):
            raise VerificationError("it replaces the log's key by one that was replaced before")
        return cls(keys, ends)

    @classmethod
    def of_key(cls, key: SigningKey) -> KeyHistory:
        """Return the keys that a key file names: those that were replaced, and the one that signs."""
        retired = key.retired
        return cls((*(one.verifier for one in retired), key.verifier), tuple(one.last_seq for one in retired))

    def follow(self, rotations: Sequence[KeyRotation]) -> KeyHistory:
        """Return these keys and those that replaced them; keys before the first of these are left out.

        Args:
            rotations: all of the log, in order; each as `KeyRotation.read` accepts it.

        Raises:
            VerificationError: they do not go on from these keys.
        """
        whole = KeyHistory.of(rotations) if rotations else self
        start = whole.keys.index(self.keys[0]) if self.keys[0] in whole.keys else len(whole.keys)
        followed = KeyHistory(whole.keys[start:], whole.ends[start:])
        known = len(self.keys)
        if (followed.keys[:known], followed.ends[: known - 1]) != (self.keys, self.ends) or (
            not rotations and self.ends
        ):
            raise VerificationError(f"the log has other keys than {self.newest.vkey} and those that replaced it")
        return followed

    @property
    def name(self) -> str:
        """The name of all keys, which is the log's origin."""
        return self.keys[0].name

    @property
    def newest(self) -> Verifier:
        """The key that signs."""
        return self.keys[-1]

    def __contains__(self, vkey: str) -> bool:
        """Return whether a key is among these."""
        return any(key.vkey == vkey for key in self.keys)

    def open_head(self, note: str) -> TreeHead:
        """Read a head that one of the keys has signed while it was the log's.

        Raises:
            VerificationError: none has signed it, or the one that has was replaced before.
        """
        failure: VerificationError | None = None
        for place in reversed(range(len(self.keys))):
            try:
                head = TreeHead.open(note, self.keys[place])
            except VerificationError as error:
                failure = failure or error
                continue
            if not self._may_sign(place, head.size):
                end = self.ends[place]
                raise VerificationError(f"a head over {head.size} entries is signed by a key replaced at entry {end}")
            return head
        assert failure is not None
        raise failure

    def has_signed(self, size: int, root: bytes, signature: bytes) -> bool:
        """Return whether a signature (key id, then 64 bytes) is that of a head by a key that was the log's then."""
        text = head_text(self.name, size, root)
        return any(
            key.has_signed(text, signature) and self._may_sign(place, size) for place, key in enumerate(self.keys)
        )

    def _may_sign(self, place: int, size: int) -> bool:
        # The newest key may sign any size: the service proves old sizes with the key that it has.
        return place == len(self.ends) or size <= self.ends[place]
