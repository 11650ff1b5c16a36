"""The operator's calls of a running service: teams' tokens, and the end of a run.

The service alone writes its database, so the command line asks it over HTTP. It proves to be the operator by a
credential that lies beside the signing key, in a file that only the service's user may read.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from label_service.errors import SetupError
from label_service.ledger.tokens import OPERATOR_FILE
from label_service.settings import Settings
from label_service.store.backends import find_database

TIMEOUT_S = 30.0


class OperatorRefused(SetupError):  # noqa: N818 - says what happened, as its siblings do
    """Raised when the service does not do what the operator asked for."""


class OperatorClient:
    """Calls a running service as its operator."""

    def __init__(self, settings: Settings, url: str | None) -> None:
        """Read the credential.

        Args:
            settings: the service's; they say where the credential lies and where the service listens.
            url: address of the service; None takes this machine and the service's port.

        Raises:
            OperatorRefused: the credential cannot be read, or the address is none.
        """
        host = settings.host if settings.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - a comparison
        shown = f"[{host}]" if ":" in host else host
        self._url = (url or f"http://{shown}:{settings.port}").rstrip("/")
        if urllib.parse.urlsplit(self._url).scheme not in ("http", "https"):
            raise OperatorRefused(f"{self._url} is not the address of a service: it begins with http:// or https://.")
        path = (settings.key_folder or find_database(settings).folder) / OPERATOR_FILE
        try:
            self._credential = path.read_text().strip()
        except (OSError, UnicodeError) as error:
            raise OperatorRefused(
                f"The operator's credential cannot be read from {path} ({getattr(error, 'strerror', 'not text')}); "
                "run this as the service's user, with the service's settings, after its first start."
            ) from error

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
        """Call the service and return its answer.

        Raises:
            OperatorRefused: it does not answer, or refuses; the sentence is the service's.
        """
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{self._url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {self._credential}", "Content-Type": "application/json"},
        )
        try:
            try:
                response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - as above
            except urllib.error.HTTPError as refusal:
                response = refusal
            with response:
                status, answer = response.status, json.load(response)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise OperatorRefused(f"The service at {self._url} does not answer ({error}).") from error
        if not isinstance(answer, dict) or status >= 300:
            detail = answer.get("detail") if isinstance(answer, dict) else None
            raise OperatorRefused(str(detail or f"The service at {self._url} answers with the status {status}."))
        return answer
