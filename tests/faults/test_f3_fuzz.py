"""F3: whatever may be sent to the receiver: by its own document, and by nobody's."""

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from domain.triggers import Scheme
from infra.webhooks import LARGEST
from tests.faults.malformed import bodies, heads
from tests.integration.receivers import ROOT, Receiver, Sender, inbox, raw, receiving, updated, write_triggers

EXAMPLES = 500
CORPUS = 200
WAIT_S = 4.0
HUGE = 50 * 2**20
MEMORY = 10 * 2**20
STATUS = re.compile(r" (\w+) /\S* (\d{3})$", re.MULTILINE)
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3})")


@pytest.fixture(scope="module")
def senders(ledger: str) -> list[Sender]:
    return [Sender(scheme) for scheme in Scheme]


@pytest.fixture(scope="module")
def receiver(senders: list[Sender], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    folder = tmp_path_factory.mktemp("receiver")
    with receiving(folder, write_triggers(folder, *senders)) as found:
        yield found
        assert found.process.poll() is None, "it lives"
        assert "Traceback" not in found.said()


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_by_its_document(
    receiver: Receiver, senders: list[Sender], report: Callable[[str], None], tmp_path: Path, signed: bool
) -> None:
    known = {sender.name: [sender.scheme, sender.secret if signed else ""] for sender in senders}
    surroundings = {
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.faults.signing",
        "HEADRACE_TEST_SENDERS": json.dumps(known),
        "NO_PROXY": "127.0.0.1",
    }
    before, kept = len(receiver.said()), sum(len(inbox(sender.name)) for sender in senders)
    # Every check, ignored_auth among them. What is signed is signed for POST; the rest needs no signature.
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{receiver.url}/openapi.json",
        "--url", receiver.url, "--max-examples", str(EXAMPLES), "--seed", "1", "--checks", "all",
        "--generation-database", "none", "--no-color", "--no-shrink", "--continue-on-failure",
        *(["--include-method", "POST"] if signed else []),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **surroundings}, capture_output=True, text=True, check=False
    )
    statuses = Counter(status for _, status in STATUS.findall(receiver.said()[before:]))
    new = sum(len(inbox(sender.name)) for sender in senders) - kept
    report(
        f"{sum(statuses.values())} requests by the document, {'signed' if signed else 'unsigned'}: {dict(statuses)}; "
        f"{new} deliveries; ignored_auth {done.stdout.lower().count('ignored auth')}"
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert sum(statuses.values()) >= EXAMPLES
    assert not [status for status in statuses if status >= "500"]
    if signed:  # a body that comes again is the same delivery where the scheme has no id
        assert EXAMPLES / 4 < new <= statuses["202"]
    else:
        assert new == 0
        assert statuses["401"] > EXAMPLES / 4


def test_by_nobodys_document(receiver: Receiver, senders: list[Sender], report: Callable[[str], None]) -> None:
    corpus = [*heads(senders[0].name, random.Random(1)), *bodies(senders)]  # noqa: S311
    # Some of it is the beginning of a request that might go on: nobody answers that.
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda data: raw(receiver.port, data, wait_s=WAIT_S), corpus))
    first = Counter(found[0].decode() if (found := ANSWER.findall(answer)) else "none" for answer in answers)
    every = {status.decode() for answer in answers for status in ANSWER.findall(answer)}
    body = updated()
    good = receiver.post(senders[0].name, body, senders[0].signed(body, delivery_id=f"after_{time.time_ns()}"))
    report(f"{len(corpus)} malformed requests: {dict(first.most_common())}; a good one after them: {good.status_code}")
    assert len(corpus) >= CORPUS
    assert not [status for status in every if status >= "500"]
    assert first["400"] > CORPUS / 2
    assert first["none"] < CORPUS / 2
    assert good.status_code == 202


def huge(name: str) -> list[Callable[[], Iterator[bytes]]]:
    """Bodies of 50 MB: announced, in chunks, in one chunk, and announced as small as they may be."""
    head = f"POST /hooks/{name} HTTP/1.1\r\nHost: x\r\n".encode()
    block = b"x" * 65536
    blocks = HUGE // len(block)

    def announced() -> Iterator[bytes]:
        yield head + b"Content-Length: %d\r\n\r\n" % HUGE
        yield from (block for _ in range(blocks))

    def chunked() -> Iterator[bytes]:
        yield head + b"Transfer-Encoding: chunked\r\n\r\n"
        yield from (b"10000\r\n" + block + b"\r\n" for _ in range(blocks))

    def one_chunk() -> Iterator[bytes]:
        yield head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % HUGE
        yield from (block for _ in range(blocks))

    return [announced, chunked, one_chunk]


def test_a_huge_body_costs_no_memory(receiver: Receiver, senders: list[Sender], report: Callable[[str], None]) -> None:
    process = psutil.Process(receiver.process.pid)
    largest = b"x" * (LARGEST + 1)
    warm = f"POST /hooks/x HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGEST}\r\nConnection: close\r\n\r\n".encode()
    for _ in range(20):
        raw(receiver.port, warm + largest[:-1])
    before = peak = process.memory_info().rss
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        ways = huge(senders[0].name) * 2
        with ThreadPoolExecutor(len(ways)) as pool:
            answers = list(pool.map(lambda way: raw(receiver.port, way()), ways))
    finally:
        ended.set()
        watching.join()
    statuses = [answer.split()[1].decode() if answer else "closed" for answer in answers]
    report(
        f"{len(ways)} bodies of {HUGE / 2**20:.0f} MB at once: {dict(Counter(statuses))}; memory grew by "
        f"{(peak - before) / 2**20:.1f} MB (the limit is {MEMORY / 2**20:.0f})"
    )
    assert set(statuses) == {"413"}
    assert peak - before < MEMORY
