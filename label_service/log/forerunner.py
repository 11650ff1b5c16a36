"""The forerunner of a log: the log before it over the same labels, which could not go on.

A log whose newest entries or whose key are lost is not continued: another one begins, with an id and a key of its own.
Its first entry names the forerunner's key, the last entries that are kept, and the last head known to be signed. If the
forerunner's key is still there it signs a statement that this log follows, so that nobody else can claim it.
"""

from pydantic import BaseModel, ConfigDict, ValidationError

from label_service.log.merkle import VerificationError
from label_service.log.signed_note import SigningKey, Verifier
from label_service.log.tree_head import TreeHead

# No head begins like this: its first line is the origin of a log, and no log has this one.
_STATEMENT = "labelmeter/successor"


class Forerunner(BaseModel):
    """What the first entry of a log says of the log before it.

    Attributes:
        key: the forerunner's verifier key.
        checkpoint: signed head over the entries that are kept.
        newest_checkpoint: the largest signed head that was known when this log began; entries between both are lost.
        statement: note by the forerunner's key that this log follows; None if the key was lost.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    key: str
    checkpoint: str
    newest_checkpoint: str
    statement: str | None = None

    @classmethod
    def state(
        cls, old: Verifier, kept: TreeHead, newest: TreeHead, new: Verifier, old_key: SigningKey | None
    ) -> "Forerunner":
        """Say what a new log follows, signed if there is the old key."""
        statement = None if old_key is None else old_key.sign(_statement(kept, new))
        return cls(key=old.vkey, checkpoint=kept.note, newest_checkpoint=newest.note, statement=statement)

    @classmethod
    def read(cls, value: object) -> "Forerunner":
        """Read what an entry says.

        Raises:
            VerificationError: it is malformed, or a head is not signed by the key.
        """
        try:
            forerunner = cls.model_validate(value)
        except ValidationError as error:
            raise VerificationError("what it says of its forerunner is malformed") from error
        if forerunner.newest.size < forerunner.kept.size:
            raise VerificationError("its forerunner's newest head is smaller than the one over the kept entries")
        return forerunner

    def require_statement(self, new: Verifier) -> None:
        """Make sure that a statement, if there is one, names the log that says it.

        Args:
            new: the key with which that log began.

        Raises:
            VerificationError: it names another log, or the forerunner's key has not signed it.
        """
        if self.statement is not None and self.verifier.open(self.statement) != _statement(self.kept, new):
            raise VerificationError("the forerunner's key has not signed that this log follows it")

    @property
    def verifier(self) -> Verifier:
        """The forerunner's key."""
        return Verifier.from_vkey(self.key)

    @property
    def kept(self) -> TreeHead:
        """The head over the entries that are kept."""
        return TreeHead.open(self.checkpoint, self.verifier)

    @property
    def newest(self) -> TreeHead:
        """The largest head that was known."""
        return TreeHead.open(self.newest_checkpoint, self.verifier)

    def describe(self) -> str:
        """Return a sentence for the reader."""
        kept, newest = self.kept, self.newest
        lost = f", and {newest.size - kept.size:,} later entries were lost" if newest.size > kept.size else ""
        proof = "the old key has signed that" if self.statement else "the old key was lost, so nothing proves that"
        return f"it follows the log {kept.origin}, of which {kept.size:,} entries are kept{lost} ({proof})"


def _statement(kept: TreeHead, new: Verifier) -> str:
    return f"{_STATEMENT}\n{kept.size}\n{new.vkey}\n"
