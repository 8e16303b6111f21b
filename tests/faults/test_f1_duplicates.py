"""F1: the same message a hundred times at once, at two receivers."""

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest

from domain.triggers import Scheme
from tests.integration.receivers import (
    DATASETS,
    PATIENCE_S,
    Receiver,
    Sender,
    inbox,
    receiving,
    updated,
    write_triggers,
)

COPIES = 100
FANOUT = Scheme.LAKEFS
"""Its messages name a repository, which both datasets are about."""


@pytest.fixture(scope="module")
def senders(ledger: str) -> dict[Scheme, Sender]:
    return {scheme: Sender(scheme) for scheme in (Scheme.STANDARD, FANOUT)}


@pytest.fixture(scope="module")
def pair(
    senders: dict[Scheme, Sender], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Receiver, Receiver]]:
    """Two receivers, on one database."""
    folder = tmp_path_factory.mktemp("receivers")
    triggers = write_triggers(folder, *senders.values())
    with receiving(folder, triggers) as one, receiving(folder, triggers) as other:
        yield one, other


async def post_all(
    receivers: tuple[Receiver, ...], sender: Sender, body: bytes, headers: dict[str, str], copies: int
) -> list[tuple[int, str, float]]:
    """Status, our word for it and seconds, for each copy of a message, all sent at once, to each in turn."""
    limits = httpx.Limits(max_connections=copies)
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S, limits=limits) as client:

        async def post(receiver: Receiver) -> tuple[int, str, float]:
            began = time.monotonic()
            answer = await client.post(f"{receiver.url}/hooks/{sender.name}", content=body, headers=headers)
            return answer.status_code, answer.json().get("status", ""), time.monotonic() - began

        return await asyncio.gather(*map(post, itertools.islice(itertools.cycle(receivers), copies)))


@pytest.mark.parametrize("scheme", [Scheme.STANDARD, FANOUT])
def test_one_delivery_and_one_change_a_dataset(
    pair: tuple[Receiver, Receiver],
    senders: dict[Scheme, Sender],
    report: Callable[[str], None],
    scheme: Scheme,
) -> None:
    sender = senders[scheme]
    body, meant = updated(), DATASETS[:1]
    if scheme is FANOUT:
        body, meant = _committed(), DATASETS
    headers = sender.signed(body, delivery_id=f"msg_{time.time_ns()}")
    answers = asyncio.run(post_all(pair, sender, body, headers, COPIES))
    kept = inbox(sender.name)
    words = Counter(word for _, word, _ in answers)
    report(
        f"{COPIES} copies at 2 receivers: statuses {dict(Counter(status for status, _, _ in answers))}, {dict(words)}, "
        f"{len(kept)} delivery, changes waiting {[list(found[2]) for found in kept]}, "
        f"slowest answer {max(seconds for _, _, seconds in answers):.2f} s"
    )
    assert {status for status, _, _ in answers} == {202}
    assert words == {"received": 1, "repeated": COPIES - 1}
    assert [found[2] for found in kept] == [meant]


def _committed() -> bytes:
    return json.dumps({"event_type": "post-commit", "repository_id": "r", "branch_id": "main"}).encode()
