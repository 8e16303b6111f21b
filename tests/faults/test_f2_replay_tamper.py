"""F2: messages that are replayed, changed, old, early or signed with another secret; and what comparing tells."""

import gc
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy import stats

from domain.triggers import Scheme
from infra import signatures
from infra.settings import load_settings
from infra.webhooks import make_app
from tests.integration.receivers import DATASETS, Receiver, Sender, inbox, receiving, receiving_here, updated
from tests.integration.receivers import write_triggers as write

SAMPLES = 20_000
BATCH = 20
"""Comparisons in a sample: one alone is shorter than the clock's own reading."""
WELCH = 4.5
SIGNED = (Scheme.STANDARD, Scheme.MLFLOW)
SKEW_S = 600


@pytest.fixture(scope="module")
def senders(ledger: str) -> dict[Scheme, Sender]:
    return {scheme: Sender(scheme) for scheme in (*SIGNED, Scheme.GITHUB)}


@pytest.fixture(scope="module")
def triggers(senders: dict[Scheme, Sender], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("triggers"), *senders.values())


@pytest.fixture(scope="module")
def receiver(triggers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(tmp_path_factory.mktemp("receiver"), triggers) as found:
        yield found


def bad_messages(sender: Sender) -> dict[str, tuple[bytes, dict[str, str]]]:
    """What nobody should believe, by what is wrong with it."""
    body, now = updated(), time.time()
    good = sender.signed(body, delivery_id="msg_good", now=now)
    delivery, stamp, signature = good  # in the order of the scheme
    mac = good[signature].removeprefix("v1,")

    def without(name: str) -> dict[str, str]:
        return {key: value for key, value in good.items() if key != name}

    headers = {
        "no id": without(delivery),
        "no time": without(stamp),
        "no signature": without(signature),
        "another id": {**good, delivery: "msg_other"},
        "another time": {**good, stamp: str(int(now) - 1)},
        "a time that is none": {**good, stamp: "hello"},
        "a time with a fraction": {**good, stamp: f"{now:.3f}"},
        "301 s old": sender.signed(body, delivery_id="msg_old", now=now - 301),
        "301 s early": sender.signed(body, delivery_id="msg_early", now=now + 303),
        "another secret": Sender(sender.scheme).signed(body, delivery_id="msg_good", now=now),
        "another version": {**good, signature: f"v2,{mac}"},
        "no comma": {**good, signature: f"v1{mac}"},
        "two commas": {**good, signature: f"v1,{mac},"},
        "not base64": {**good, signature: "v1,a"},
        "an empty signature": {**good, signature: "v1,"},
        "a partial signature": {**good, signature: f"v1,{mac[:20]}"},
    }
    bad = {name: (body, given) for name, given in headers.items()}
    bad["another body"] = (updated(DATASETS[1]), good)
    bad["the same JSON, written otherwise"] = (json.dumps(json.loads(body), indent=1).encode(), good)
    bad["a space more"] = (body + b" ", good)
    bad["an empty body"] = (b"", good)
    bad["not UTF-8"] = (b"\xff\xfe", good)
    return bad


@pytest.mark.parametrize("scheme", SIGNED)
def test_every_bad_message_is_refused(
    receiver: Receiver, senders: dict[Scheme, Sender], report: Callable[[str], None], scheme: Scheme
) -> None:
    sender = senders[scheme]
    before = inbox(sender.name)
    bad = bad_messages(sender)
    answers = {name: receiver.post(sender.name, *message).status_code for name, message in bad.items()}
    body = updated()
    aged = {
        age: receiver.post(
            sender.name,
            body,
            sender.signed(body, delivery_id=f"age_{age}_{time.time_ns()}", now=time.time() + age),
        ).status_code
        for age in (-295, 0, 295)
    }
    report(f"{len(bad)} bad messages: {dict(Counter(answers.values()))}; good ones by age in seconds: {aged}")
    assert len(bad) >= 12
    assert {name: status for name, status in answers.items() if status != 401} == {}
    assert set(aged.values()) == {202}
    assert len(inbox(sender.name)) == len(before) + len(aged)


def test_an_id_is_one_body(receiver: Receiver, senders: dict[Scheme, Sender], report: Callable[[str], None]) -> None:
    statuses: dict[str, list[int]] = {}
    for scheme, sender in senders.items():
        delivery = f"msg_{time.time_ns()}"
        bodies = [updated(n=n) for n in (0, 0, 1, 0)]
        answers = [receiver.post(sender.name, b, sender.signed(b, delivery_id=delivery)) for b in bodies]
        statuses[str(scheme)] = [answer.status_code for answer in answers]
        assert len([found for found in inbox(sender.name) if found[0] == delivery]) == 1
    report(f"the same body, the same again, another body, the first again: {statuses}")
    assert set(map(tuple, statuses.values())) == {(202, 202, 409, 202)}


def test_a_secret_changes_under_way(
    receiver: Receiver, senders: dict[Scheme, Sender], report: Callable[[str], None]
) -> None:
    sender = senders[Scheme.STANDARD]
    ended, statuses = threading.Event(), []

    def send_on() -> None:
        while not ended.is_set():
            body = updated()
            headers = sender.signed(body, delivery_id=f"rot_{time.time_ns()}")
            statuses.append(receiver.post(sender.name, body, headers).status_code)

    sending = threading.Thread(target=send_on)
    sending.start()
    try:
        for _ in range(5):
            old, new = sender.secret, signatures.new_secret(sender.scheme)
            sender.keep(new, old)
            _wait_for_more(statuses, 5)
            sender.secret = new
            _wait_for_more(statuses, 5)  # at most one of them was signed before
            sender.keep(new)
    finally:
        ended.set()
        sending.join()
    body = updated()
    gone = signatures.sign(sender.scheme, old, body, delivery_id="gone", now=time.time())
    refused = receiver.post(sender.name, body, gone).status_code
    report(f"5 changes under way: {dict(Counter(statuses))}; with a secret that was dropped: {refused}")
    assert set(statuses) == {202}
    assert refused == 401


def _wait_for_more(statuses: list[int], more: int) -> None:
    wanted, deadline = len(statuses) + more, time.monotonic() + 60
    while len(statuses) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("scheme", SIGNED)
@pytest.mark.parametrize("skew", [-SKEW_S, SKEW_S])
def test_a_receiver_whose_clock_is_wrong_believes_nobody(
    triggers: Path,
    senders: dict[Scheme, Sender],
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    scheme: Scheme,
    skew: int,
) -> None:
    monkeypatch.setenv("HEADRACE_TRIGGERS", str(triggers))
    sender, body = senders[scheme], updated()
    statuses = {}
    for name, clock in (("wrong", lambda: time.time() + skew), ("right", time.time)):
        with receiving_here(make_app(load_settings(), clock=clock)) as url:
            headers = sender.signed(body, delivery_id=f"skew_{time.time_ns()}")
            with httpx.Client(trust_env=False) as client:
                answer = client.post(f"{url}/hooks/{sender.name}", content=body, headers=headers)
            statuses[name] = answer.status_code
    report(f"clock {skew:+d} s: {statuses}")
    assert statuses == {"wrong": 401, "right": 202}


def welch(compare: Callable[[bytes, bytes], object]) -> float:
    """Welch's t between the times of a mismatch in the first and in the last byte, outliers trimmed.

    The samples alternate in random order, and both texts are made alike, so that nothing else tells them apart.
    """
    expected = bytes(random.Random(0).choices(b"0123456789abcdef", k=4096))  # noqa: S311
    wrong = [bytearray(expected), bytearray(expected)]
    wrong[0][0] ^= 1
    wrong[1][-1] ^= 1
    given = [bytes(text) for text in wrong]
    order = [which for _ in range(SAMPLES) for which in (0, 1)]
    random.Random(1).shuffle(order)  # noqa: S311
    times: tuple[list[int], list[int]] = ([], [])
    clock, repeats = time.perf_counter_ns, range(BATCH)
    gc.disable()
    try:
        for which in order:
            text = given[which]
            began = clock()
            for _ in repeats:
                compare(text, expected)
            times[which].append(clock() - began)
    finally:
        gc.enable()
    first, last = (np.sort(sample)[: int(0.9 * SAMPLES)] for sample in times)
    return float(stats.ttest_ind(first, last, equal_var=False).statistic)


def test_comparing_takes_as_long_wherever_texts_differ(report: Callable[[str], None]) -> None:
    # A machine that is busy can shift a whole series; a comparison that tells does so in each of them.
    ours = [welch(signatures.same) for _ in range(3)]
    theirs = welch(lambda given, expected: given == expected)
    report(
        f"Welch's t of {SAMPLES:,} samples of {BATCH} comparisons: {', '.join(f'{t:+.2f}' for t in ours)}; "
        f"by == it is {theirs:+.1f}; the limit is {WELCH}"
    )
    assert min(map(abs, ours)) < WELCH
    assert abs(theirs) > 10 * WELCH or math.isinf(theirs), "the measurement would see one that tells"
