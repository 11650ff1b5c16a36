"""Let many clients race for the last labels of a run, a thousand times: `python -m tests.campaigns.race_campaign`.

In each race a run with a small budget is opened, and all clients ask for different labels at the same moment over HTTP.
The service must charge exactly the budget, every time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from pathlib import Path

import httpx

from tests.support.datasets import make_idx_dataset
from tests.support.service_process import service

POOL = 1000


async def race(
    client: httpx.AsyncClient, clients: int, budget: int, pool: int, rng: random.Random
) -> tuple[Counter[int], int]:
    """Run one race; return the number of answers of each status, and the labels that the service has charged."""
    opened = (await client.post("/v1/runs", json={"name": "race", "budget": budget})).json()
    headers = {"Authorization": f"Bearer {opened['token']}"}
    ids = rng.sample(range(pool), clients)
    answers = await asyncio.gather(*(client.get(f"/label/{label_id}", headers=headers) for label_id in ids))
    state = (await client.get(f"/v1/runs/{opened['run_id']}")).json()
    return Counter(answer.status_code for answer in answers), state["queries"]


async def campaign(
    base_url: str, races: int, clients: int, seed: int, pool: int = POOL
) -> list[tuple[int, Counter[int], int]]:
    """Run races; return the budget, the answers by status and the charged labels of each race that went wrong."""
    rng, wrong = random.Random(seed), []
    # Shorter than the service keeps a connection: one that it closes just then would lose a request.
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients, keepalive_expiry=1.0)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=60.0) as client:
        for number in range(races):
            budget = rng.randint(1, 4)
            statuses, counted = await race(client, clients, budget, pool, rng)
            if statuses != {200: budget, 403: clients - budget} or counted != budget:
                wrong.append((budget, statuses, counted))
            if (number + 1) % 50 == 0:
                print(f"\r{number + 1} of {races} races ", end="", flush=True)
    return wrong


def main() -> None:
    """Run and print a table; exit with 1 if a race went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_idx_dataset(Path(folder) / "data", pool=POOL, test=10, classes=10, side=1)
        with service(data, Path(folder)) as client:
            wrong = asyncio.run(campaign(str(client.base_url), given.races, given.clients, given.seed))
    print("\n| races | clients | exactly the budget charged | otherwise |\n|---:|---:|---:|---:|")
    print(f"| {given.races:,} | {given.clients} | {given.races - len(wrong):,} | {len(wrong)} |")
    for budget, statuses, counted in wrong:
        print(f"budget {budget}: {dict(statuses)}, {counted} counted")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
