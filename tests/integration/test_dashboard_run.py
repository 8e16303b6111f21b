"""Run: rows add up, calls and money are the ledger's, the quarantine is filtered, hostile text stays text."""

import json
import re
import shlex
import uuid

import numpy as np
import pytest

from dashboards import lists, queries
from dashboards.pages import run as page
from dashboards.pages import triggers
from dashboards.run_calls import split_cost
from domain.errors import Place
from domain.ledgers import Attempt, Conservation, OutcomeClass, Stage
from domain.requests import Usage
from domain.starts import Starter
from infra.db.session import transaction
from infra.db.store import answers, calls, changes, runs
from infra.db.store.answers import StoredAnswer, StoredQuarantine
from infra.exchange import import_runs
from tests.integration import command_line
from tests.integration.begun_runs import open_run
from tests.integration.recorded_runs import FILE, lines
from tests.integration.shown_pages import RECORDED, ROUTED, downloads, read, save_run, show

pytestmark = pytest.mark.timeout(120)
HOSTILE = "<script>alert(1)</script> ![x](http://127.0.0.1:9/x) \u202e=1+1 " + "long" * 200


@pytest.fixture(scope="module", autouse=True)
def imported(ledger: str) -> None:
    """The recorded run's rows are in the ledger."""
    import_runs(FILE)


def attempt(stage: Stage, *, seconds: float = 1.0, cached: bool = False, ending: str = "answered") -> Attempt:
    """A call of the cheap tier: 100 tokens in, 8 out, of which 64 were cached as prefix; a hundredth of a USD."""
    return Attempt(
        attempt_id=str(uuid.uuid4()),
        stage=stage,
        tier="cheap",
        record_key="k" * 64,
        request_hash="h" * 64,
        number=0,
        cached=cached,
        usage=Usage(100, 8, 64),
        seconds=seconds,
        usd=0.01,
        worker="w",
        outcome=OutcomeClass(ending),
        detail=HOSTILE if ending != "answered" else None,
    )


def test_who_started_a_run_is_said_where_it_is_known() -> None:
    run_id = save_run(f"w{uuid.uuid4().hex[:10]}")
    said = re.compile(r"began [\d-]+ [\d:]+ UTC( by \w+)?, ended")
    unknown = said.search(show("run", run=run_id).words)
    assert unknown is not None
    assert unknown[1] is None
    with transaction() as db:
        runs.change_run(db, run_id, started_by=Starter.DELIVERY)
    queries.rows.clear()
    known = said.search(show("run", run=run_id).words)
    assert known is not None
    assert known[1] == " by delivery"
    listed = json.loads(command_line.headrace("runs", "--json").stdout)
    assert {run["id"]: run["started_by"] for run in listed}[run_id] == "delivery"
    assert re.search(rf"^{run_id[:8]} .* delivery *$", command_line.headrace("runs").stdout, re.MULTILINE)
    assert "started by delivery" in command_line.headrace("show", run_id).stdout


@pytest.mark.parametrize("recorded", [RECORDED, ROUTED], ids=["optimize", "route"])
def test_the_rows_of_a_run_add_up_as_the_ledger_counts_them(recorded: dict[str, str]) -> None:
    with transaction() as db:
        terms = runs.conservation(db, recorded["id"])
    counted = queries.one("SELECT * FROM run_rows WHERE run_id = :run", run=recorded["id"])
    assert counted is not None
    ways = page.funnel(counted)
    assert sum(row["rows"] for row in ways if row["ends"] != "records") == terms.records == ways[0]["rows"]
    shown = show("run", run=recorded["id"])
    assert f"{terms}. Every row is counted once on the right; the equation holds." in shown.words
    mine = [row for row in lines(FILE, "outcomes") if row["run_id"] == recorded["id"]]
    kept = sum(row["tier"] == "cheap" for row in mine)
    assert f"Answered by cheap, kept {kept} " in shown.words
    assert f"Escalated, answered by strong {sum(row['escalated'] for row in mine)} " in shown.words


def test_a_run_in_progress_and_a_cancelled_one_say_which_rows_are_left() -> None:
    run_id = open_run()
    with transaction() as db:
        runs.take_rows(db, run_id, [(f"{n:064d}", n) for n in range(5)])
        answers.save_quarantine(db, run_id, [StoredQuarantine(f"{0:064d}", "validate", Place("f", 1), "why")])
    assert str(Conservation(5, 0, 1, 0, 4)) in show("run", run=run_id).words
    with transaction() as db:
        runs.change_run(db, run_id, state="cancelled")
    words = show("run", run=run_id).words
    assert str(Conservation(5, 0, 1, 4, 0)) in words
    assert f"headrace resume {run_id[:8]}" in words


def test_calls_and_money_are_the_ledgers_paid_and_spared() -> None:
    with transaction() as db:
        told = calls.spending(db, RECORDED["id"])
    words = show("run", run=RECORDED["id"]).words
    paid, spared = sum(one.usd for one in told), sum(one.spared_usd for one in told)
    assert f"Paid ${paid:.4f} USD at list price; {sum(one.calls for one in told):,} calls to the models" in words
    assert f"Spared ${spared:.4f} USD at list price; {sum(one.cached for one in told):,} calls answered" in words
    found = queries.rows("SELECT * FROM run_calls WHERE run_id = :run", run=RECORDED["id"])
    by_stage = {(row["where"], row["way"]): row for row in split_cost(found)}
    for stage, tier in {(one.stage, one.tier) for one in told}:
        mine = [one for one in told if (one.stage, one.tier) == (stage, tier)]
        if sum(one.calls for one in mine):
            line = by_stage[f"{stage}, {tier}", "paid"]
            assert line["calls"] == sum(one.calls for one in mine)
            assert line["usd"] == pytest.approx(sum(one.usd for one in mine))
            assert line["prefix_tokens"] == sum(one.usage.cached for one in mine)


def test_histograms_and_quantiles_are_those_of_the_calls() -> None:
    run_id = open_run()
    took = [0.011, 0.02, 0.05, 0.5, 0.7, 1.5, 2.0, 30.0]
    with transaction() as db:
        calls.save_attempts(db, run_id, [attempt(Stage.GENERATE, seconds=s) for s in took])
        calls.save_attempts(db, run_id, [attempt(Stage.GENERATE, seconds=0, cached=True)])
        calls.save_attempts(db, run_id, [attempt(Stage.GENERATE, seconds=99.0, ending="timeout")])
    found = queries.rows("SELECT * FROM run_latencies WHERE run_id = :run ORDER BY low_s", run=run_id)
    for row in found:
        assert row["calls"] == sum(row["low_s"] <= s < row["high_s"] for s in took)
    assert sum(row["calls"] for row in found) == len(took)
    half, most = np.quantile(took, [0.5, 0.95])
    shown = show("run", run=run_id)
    words = shown.words
    assert downloads(shown) >= {"latencies", "latency-quantiles", "tokens"}
    assert f"median {half:.2f} s, 95th percentile {most:.2f} s, n = {len(took)} calls" in words
    assert "Prompt tokens of a cheap answer: mean 100.0, n = 9, the ledger's included." in words


def test_errors_and_re_asks_are_counted_and_text_of_strangers_stays_text() -> None:
    run_id = open_run()
    with transaction() as db:
        calls.save_attempts(db, run_id, [attempt(Stage.GENERATE, ending="timeout") for _ in range(3)])
        given = {"request_hash": "h", "confidence": None, "tokens": 1, "usd": 0.0, "failed": None}
        stored = [
            StoredAnswer(record_key=f"{n:064d}", tier="cheap", output=None if n == 0 else {}, reasks=n % 2, **given)
            for n in range(5)
        ]
        answers.save_answers(db, run_id, stored)
        bad = [StoredQuarantine(f"{n:064d}", "validate", Place(HOSTILE, n, HOSTILE), HOSTILE) for n in range(2)]
        answers.save_quarantine(
            db, run_id, [*bad, StoredQuarantine("z" * 64, "snapshot", Place("f.jsonl", 7), "no text")]
        )
    shown = show("run", run=run_id)
    assert "timeout generate cheap 3 <script>alert(1)" in shown.words
    assert "Rows asked again, cheap 2 of n = 5 rows; 1 stayed invalid" in shown.words
    assert "3 rows" in shown.words
    assert not any("<script>" in block or "<img" in block for block in shown.blocks)
    assert all("![x]" not in str(part.value) for part in shown.test.get("markdown"))

    shown.test.text_input[0].set_value("NO text")
    words = read(shown.test.run()).words
    assert "1 row " in words
    assert "f.jsonl 7 – snapshot no text" in words
    shown.test.text_input[0].set_value("")
    shown.test.selectbox[1].set_value("validate")
    assert "2 rows" in read(shown.test.run()).words
    assert f"headrace show {run_id[:8]} --quarantined" in words


def test_the_command_that_asks_rows_again_is_exact_and_only_where_it_can() -> None:
    run_id = open_run()
    with transaction() as db:
        runs.change_run(db, run_id, kind="route")
        bad = [StoredQuarantine(f"{n:064d}", "validate", Place("f", n), f"it's no 'label' {n}") for n in range(2)]
        answers.save_quarantine(db, run_id, [*bad, StoredQuarantine("z" * 64, "snapshot", Place("f", 7), "no text")])
    assert "headrace quarantine requeue" not in show("run", run=run_id).words
    with transaction() as db:
        runs.change_run(db, run_id, state="completed")
    shown = show("run", run=run_id)
    assert f"headrace quarantine requeue {run_id[:8]}" in [part.value for part in shown.test.code]
    shown.test.text_input[0].set_value("'label' 1")
    shown.test.run()
    last = shown.test.code[-1].value
    assert shlex.split(last) == ["headrace", "quarantine", "requeue", run_id[:8], "--reason", "'label' 1"]
    assert "This asks more" not in read(shown.test).words
    shown.test.text_input[0].set_value("'LABEL' 1")
    again = read(shown.test.run())
    assert again.test.code[-1].value == f"headrace quarantine requeue {run_id[:8]}"
    assert "This asks more rows than are shown, 2 and not 1:" in again.words


def test_reasons_that_are_cut_are_told_and_every_stage_can_be_chosen() -> None:
    run_id = open_run()
    with transaction() as db:
        runs.change_run(db, run_id, kind="route", state="completed")
        bad = [StoredQuarantine(f"{n:064d}", "validate", Place("f", n), f"why {n}") for n in range(page.MOST_REASONS)]
        lost = StoredQuarantine("y" * 64, "retrieve", Place("f", 7), "why not")
        answers.save_quarantine(db, run_id, [*bad, lost])
    shown = show("run", run=run_id)
    assert "Of 1,001 reasons, 1,000 are listed" in shown.words
    assert downloads(shown) >= {"quarantine", "quarantine-reasons"}
    assert shown.test.selectbox[1].options == ["every stage", "retrieve", "validate"]
    shown.test.selectbox[1].set_value("retrieve")
    words = read(shown.test.run()).words
    assert "This asks more rows than are shown, 1,001 and not 1:" in words


@pytest.mark.parametrize("asked", [RECORDED["id"], RECORDED["id"][:8]], ids=["whole", "beginning"])
def test_an_address_finds_a_run_by_its_beginning_too(asked: str) -> None:
    open_run()  # a newer one, which is shown when the address asks for none
    shown = show("run", run=asked)
    assert f"headrace show {RECORDED['id'][:8]}" in shown.words
    assert not shown.test.warning
    assert shown.test.query_params["run"] in (RECORDED["id"], [RECORDED["id"]])


def test_an_address_of_no_run_is_told_and_what_has_not_begun_leads_nowhere() -> None:
    begun, absent = open_run(), str(uuid.uuid4())
    told = [warning.value for warning in show("run", run=absent).test.warning]
    assert told == [f"{page.ABSENT} What is shown is another one."]
    with transaction() as db:
        for number, run_id in enumerate((begun, absent)):
            changes.reserve(db, f"{run_id}-{number}", flow="route-batch", parameters={"workload": "w"})
            changes.note_start(db, f"{run_id}-{number}", run_id)
    found, _ = lists.newest(triggers.STARTS, triggers.STARTED, "created_at DESC", since="1 day")
    links = {row["run_id"]: row["to_run"] for row in found}
    assert (links[begun], links[absent]) == (f"/run?run={begun}", None)


def test_only_a_run_that_looked_for_a_threshold_leads_to_the_router() -> None:
    assert f"/router?run={RECORDED['id']}" in " ".join(show("run", run=RECORDED["id"]).blocks)
    begun = open_run()
    with transaction() as db:
        runs.change_run(db, begun, kind="optimize")
    assert "/router?" not in " ".join(show("run", run=begun).blocks)


def test_a_run_without_anything_is_drawn_too() -> None:
    words = show("run", run=open_run()).words
    for empty in ("taken no rows", "No stage", "No call was made for a row", "made no call", "No row of this run"):
        assert empty in words
