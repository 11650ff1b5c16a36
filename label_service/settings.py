"""The operator's settings: environment variables `LABEL_SERVICE_*`, each also a flag of `serve` unless it is a secret.

This is the one declaration of a setting: the command line makes its flags and their help from these fields, and
`docs/service.md` lists every one (a test compares the two).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

# Part of the contract with clients, hence no setting.
MAX_IDS_PER_BATCH = 1000


class Settings(BaseSettings):
    """Settings of one service. Numbers without a unit in the name count labels, runs or evaluations."""

    # env_ignore_empty: `LABEL_SERVICE_X=` in a compose file means "not set".
    model_config = SettingsConfigDict(
        env_prefix="LABEL_SERVICE_", env_ignore_empty=True, extra="forbid", validate_default=True, frozen=True
    )

    database_url: str = Field(
        "sqlite:///data/service/labels.sqlite3",
        description="Where labels, runs and the log are kept: an SQLite file, or a PostgreSQL database such as "
        "postgresql+psycopg://user@host/database.",
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that serve; more than one needs PostgreSQL.")
    key_folder: Path | None = Field(
        None,
        description="Folder of the log's signing key. Empty: the SQLite file's folder; with PostgreSQL, the folder "
        "`service` in the data folder.",
    )
    heads_folder: Path | None = Field(
        None,
        description="Where signed heads of the log are remembered; best on another volume than the database. Empty: "
        "beside the key's folder, under its name with -heads.",
    )
    data: Path = Field(
        Path("data"),
        description="Folder made by `prepare`, or its labels folder; seeds an empty database, and is compared with a "
        "seeded one.",
    )
    other_data: bool = Field(False, description="Accept label files that are not the known Fashion-MNIST files.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allowed_hosts: str | None = Field(
        None,
        description="Names, separated by commas, under which clients reach the service beside localhost, its own "
        "addresses and HOST.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path under which a reverse proxy shows the service, such as /labels; the proxy takes it away.",
    )
    guest_budget: int = Field(100, ge=0, description="Labels that queries without a token may reveal; 0 closes them.")
    default_run_budget: int = Field(1000, ge=0, description="Budget of a run that names none.")
    max_run_budget: int | None = Field(None, ge=0, description="Largest budget a run may have; empty: no limit.")
    total_budget: int | None = Field(None, ge=0, description="Labels charged over all runs together; empty: no limit.")
    max_evaluations: int = Field(16, ge=1, description="Most evaluations one run may declare.")
    # An accuracy tells up to 13 bits about the test labels, which hold 33,000 for 10,000 images in ten classes.
    total_evaluations: int = Field(256, ge=0, description="Evaluations of all runs together.")
    tokenless_budget: int = Field(
        5000, ge=0, description="Labels charged over all runs together that were opened without a token."
    )
    tokenless_evaluations: int = Field(
        32, ge=0, description="Evaluations of all runs together that were opened without a token."
    )
    registration_token: SecretStr | None = Field(
        None,
        min_length=1,
        description="If set, opening a run needs this bearer token (environment only: process lists show flags).",
    )
    registration_token_file: Path | None = Field(
        None, description="File of the registration token; made with a fresh token if it is missing."
    )
    rate_limit_labels_per_minute: int | None = Field(
        None, ge=1, description="Ids one run may ask for in a minute, charged or not; empty: no limit."
    )
    # A burst is a whole hour's worth: who repeats a run of thousands of labels in batches never meets this limit.
    uncharged_entries_per_hour: int = Field(
        1200,
        ge=1,
        description="Repeats and refused requests that are logged in an hour for one run, for the guest, or for all "
        "runs opened without a token together.",
    )
    openings_per_hour: int = Field(
        120,
        ge=1,
        description="Runs opened in an hour without a token, or with one team's token; the registration token has no "
        "such limit.",
    )
    max_connections: int = Field(512, ge=1, description="Connections at a time; each worker counts its own.")
    max_connections_per_address: int = Field(
        256, ge=1, description="Connections at a time from one address; behind a reverse proxy all are the proxy's."
    )
    max_watchers: int = Field(
        64, ge=0, description="Open pages that are told of new entries at a time; each worker counts its own."
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest request body that is read, in bytes.")
    log_format: Literal["text", "json"] = Field(
        "text", description="How messages and the access log are written to stderr: as text, or as JSON objects."
    )
    queue_size: int = Field(1024, ge=1, description="Requests that may wait for the writer before new ones get 503.")
    max_group: int = Field(
        256, ge=1, description="Most requests in one transaction; more would make the first wait for the last."
    )
    busy_timeout_s: float = Field(
        5.0, ge=0, le=60, description="Seconds the writer waits for a locked database before it answers 503."
    )
