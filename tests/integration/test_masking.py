"""No view shows what stands before @ in an address, or what follows its question mark, whoever wrote it down."""

import uuid

import pytest
from sqlalchemy import update

from domain.datasets import BadRow, Record, Split
from domain.errors import Place
from domain.ledgers import Attempt, OutcomeClass, Stage
from domain.outcomes import Outcome, Unanswered
from domain.requests import Usage
from domain.workloads import TierName
from infra.db import reader
from infra.db.session import transaction
from infra.db.store import answers, calls, changes, deliveries, notices, runs
from infra.db.store.answers import StoredScore
from infra.db.trigger_tables import NoticeRow
from infra.snapshots import store_snapshot, take_version

SAYING_ADDRESSES = (
    "dataset_versions",
    "records",
    "bad_rows",
    "calls",
    "run_calls",
    "run_quarantine",
    "row_ends",
    "row_texts",
    "final_scores",
    "changes",
    "notices",
)
"""Views with a column in which an address may stand."""


@pytest.fixture(scope="module")
def hush(ledger: str) -> str:
    """A secret that stands in every place and reason of a run."""
    secret = f"hush{uuid.uuid4().hex}"
    place, words = f"https://me:{secret}@host/rows?key={secret}", f"busy: https://me:{secret}@host/x?key={secret} said"
    of = [Record(f"{n}", {"text": secret[4:]}, {"topic": "card"}, Split.TEST, Place(place, n + 1)) for n in range(2)]
    version, _ = store_snapshot([*of, BadRow(Place(place, 9), words, "")], uri=place)
    run_id = str(uuid.uuid4())
    with transaction() as db:
        spec = {"decisive": "topic", "metric": "exact_match"}
        runs.open_run(db, run_id, kind="optimize", workload=secret[4:], workload_hash="0" * 64, spec=spec, meters={})
    take_version(run_id, version, (Split.TEST,))
    call = Attempt(
        attempt_id=str(uuid.uuid4()),
        stage=Stage.GENERATE,
        tier="cheap",
        record_key=of[0].key,
        request_hash="0" * 64,
        number=1,
        cached=False,
        usage=Usage(0, 0, 0),
        seconds=1.0,
        usd=0.0,
        worker=place,
        outcome=OutcomeClass.THROTTLED,
        detail=words,
    )
    with transaction() as db:
        calls.save_attempts(db, run_id, [call])
        kept = Outcome(of[0].key, TierName.CHEAP, {"topic": "card"}, 0.9, escalated=False, usd=0.0)
        answers.save_settled(db, run_id, version, [kept, Unanswered(of[1].key, words)])
        answers.save_scores(db, run_id, [StoredScore(of[0].key, TierName.CHEAP, "exact_match", 1.0)])
        said = [(secret[4:], 0.0)]
        deliveries.receive(db, source="own", delivery_id=run_id, body_hash="0" * 64, event="updated", datasets=said)
        changes.settle(db, changes.waiting(db, secret[4:]), state="failed", detail=words)
        notices.add(db, ["pager"], key=run_id, event="headrace.run.failed", payload={})
        db.execute(update(NoticeRow).where(NoticeRow.key == run_id).values(state="dead", error=words))
        runs.close_run(db, run_id, state="completed", meters={})
    return secret


def views() -> list[str]:
    """Every view that there is."""
    query = "SELECT table_name AS name FROM information_schema.views WHERE table_schema = 'views' ORDER BY 1"
    return [str(row["name"]) for row in reader.read(query)]


def holding(view: str, text: str) -> int:
    """How many rows of a view hold a text, in whichever column."""
    query = f"SELECT count(*) AS n FROM {view} AS v WHERE strpos(v::text, :text) > 0"  # noqa: S608
    (found,) = reader.read(query, {"text": text})
    return int(found["n"])


def test_no_view_shows_credentials_in_addresses(hush: str) -> None:
    assert set(SAYING_ADDRESSES) <= set(views())
    assert [view for view in views() if holding(view, hush)] == []


@pytest.mark.parametrize("view", SAYING_ADDRESSES)
def test_what_is_left_of_an_address_is_shown(hush: str, view: str) -> None:
    # The rows are there, so that the test above had something to find.
    assert holding(view, "https://host/") > 0


def test_reasons_keep_their_words(hush: str) -> None:
    (found,) = reader.read("SELECT reason FROM bad_rows WHERE reason LIKE 'busy%' LIMIT 1")
    assert found["reason"] == "busy: https://host/x?… said"
