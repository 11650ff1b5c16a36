"""What a client can check: receipts, openings of labels, and the evidence bundle.

The log makes these models, the web serves them unchanged, and `label_service.log.verify` reads them offline. The JSON
that a client keeps is therefore defined here and nowhere else. Hashes are base64, and every proof lists its hashes from
the leaf's sibling up (RFC 6962, section 2.1).
"""

from pydantic import BaseModel, ConfigDict, Field

from label_service.log.entries import canonical_json


class _Strict(BaseModel):
    """No type is converted and no unknown field is ignored: what is verified has one reading."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Receipt(_Strict):
    """Proof that the entry of this request is in the log: hash the entry, follow the proof, compare the root."""

    entry: str = Field(description="The entry's exact text: the leaf of the tree.")
    index: int = Field(description="Its number, which is its place among the leaves.")
    inclusion_proof: list[str] = Field(description="RFC 6962 hashes from the leaf's sibling up, base64.")
    checkpoint: str = Field(description="The signed head the proof leads to (C2SP tlog-checkpoint).")


class EarlierHead(_Strict):
    """The signature of the tree head at an earlier size of the log. The root is not kept: the entries give it."""

    size: int
    signature: str = Field(description="Key id and Ed25519 signature, base64, as in a signed note.")


class Evidence(_Strict):
    """The whole log under one signed head: all that offline verification needs beside the pinned key."""

    bundle: int = Field(ge=1, le=1, description="Version of this format.")
    key: str = Field(description="The log's verifier key. Compare it with the one you pinned.")
    pool_size: int = Field(description="Number of labels that the service committed to.")
    checkpoint: str
    entries: list[str] = Field(description="Every entry's exact text, in order, up to the checkpoint's size.")
    heads: list[EarlierHead] = Field(description="One for each commit; they narrow down a changed entry.")


class EvidencePage(Evidence):
    """A part of the evidence. The parts of one size, put together in order, are the whole."""

    next: int | None = Field(None, description="Pass as `after` for the next page; null: this was the last.")


class LabelOpening(_Strict):
    """Proof that a label is the one committed to before the first query.

    The leaf is `{"id":…,"label":…,"salt":"…"}` without white space; its tree's root is the entry's `label_commitment`.
    """

    salt: str = Field(description="64 hexadecimal digits that nobody could guess.")
    proof: list[str] = Field(description="RFC 6962 hashes from the leaf's sibling up, base64; the index is the id.")


class OpenedLabel(BaseModel):
    """One label and the proof that it was committed to."""

    id: int
    label: int
    opening: LabelOpening


def label_leaf(label_id: int, label: int, salt: str) -> bytes:
    """Return the leaf of one label in the tree of the answer key; see `LabelOpening`."""
    if type(label_id) is int and type(label) is int and salt.isascii() and salt.isalnum():
        # The same bytes, written directly: each start makes the leaf of every label.
        return b'{"id":%d,"label":%d,"salt":"%s"}' % (label_id, label, salt.encode())
    return canonical_json({"id": label_id, "label": label, "salt": salt})
