"""What torchrun tells each of two processes on this machine."""

from __future__ import annotations

import socket


def two_ranks() -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment variables of rank 0 and of rank 1, which meet on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (group | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1"))
    return first, second
