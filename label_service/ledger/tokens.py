"""Bearer tokens: made once, shown once, stored as SHA-256, compared in constant time.

A token is `RUN_ID.SECRET`; the first half finds the run, the second proves it. The secret has 256 random bits, so a
plain hash is enough (a slow one protects guessable passwords only).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from label_service.errors import RegistrationTokenRefused

SECRET_BYTES = 32
RUN_ID_BYTES = 6
# A team's token is `team.NAME.SECRET`. No run has the id `team`.
TEAM = "team"
# The operator's credential, beside the signing key.
OPERATOR_FILE = "operator.token"


def new_run_id() -> str:
    """Return a fresh run id such as `run-3f9a1c2b4d5e`."""
    return f"run-{secrets.token_hex(RUN_ID_BYTES)}"


def new_token(run_id: str) -> str:
    """Return a fresh token for a run."""
    return f"{run_id}.{new_nonce()}"


def new_nonce() -> str:
    """Return 256 random bits as text."""
    return secrets.token_urlsafe(SECRET_BYTES)


def token_of_key(run_id: str, nonce: str, key: str) -> str:
    """Return the token of a run that was opened under an Idempotency-Key: only who knows the key can make it again."""
    secret = hmac.new(nonce.encode(), f"{run_id} {key}".encode(), hashlib.sha256).digest()
    return f"{run_id}.{base64.urlsafe_b64encode(secret).decode().rstrip('=')}"


def new_team_token(name: str) -> str:
    """Return a fresh token for a team."""
    return f"{TEAM}.{name}.{new_nonce()}"


def team_of(token: str) -> str | None:
    """Return the name of the team's token that a token claims to be, None if it claims to be none."""
    kind, _, rest = token.partition(".")
    return rest.partition(".")[0] if kind == TEAM else None


def read_operator_token(folder: Path) -> str:
    """Return the operator's credential, which lies beside the signing key; only its owner may read it.

    Raises:
        RegistrationTokenRefused: the file cannot be made or read, or is empty.
    """
    return _read_token(folder / OPERATOR_FILE, 0o600, "operator's credential")


def read_registration_token(path: Path) -> str:
    """Return the registration token that a file holds; a missing file is made, with a fresh token.

    The owner's group may read it, so that a trainer of another user can be given the token.

    Raises:
        RegistrationTokenRefused: the file cannot be made or read, or is empty.
    """
    return _read_token(path, 0o640, "registration token")


def _read_token(path: Path, mode: int, name: str) -> str:
    """Return the token that a file holds; a missing file is made.

    Raises:
        RegistrationTokenRefused: the file cannot be made or read, or is empty.
    """
    try:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{secrets.token_urlsafe(SECRET_BYTES)}\n")
        token = path.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise RegistrationTokenRefused(f"The {name} cannot be read from {path} ({error}).") from error
    if not token:
        raise RegistrationTokenRefused(f"The file of the {name}, {path}, is empty; remove it.")
    return token


def run_of(token: str) -> str:
    """Return the run id a token claims to belong to."""
    return token.partition(".")[0]


def token_hash(token: str) -> str:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def matches(token: str, stored_hash: str) -> bool:
    """Return whether a token has the stored hash, in time that does not depend on where they differ."""
    return hmac.compare_digest(token_hash(token), stored_hash)
