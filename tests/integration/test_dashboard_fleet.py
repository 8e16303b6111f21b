"""The page Fleet and cost, on a real ledger: its sums are those of the ledger's own functions."""

import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from streamlit.testing.v1 import AppTest

from dashboards.calls import POINTS, added_up, point_s, summed, working_s
from dashboards.parts import SHOWN, usd
from dashboards.queries import rows
from domain.datasets import Record, Split
from domain.errors import Place
from domain.ledgers import Attempt, OutcomeClass, Stage
from domain.requests import Usage
from infra.db.session import transaction
from infra.db.store import calls, changes, deliveries, leases, runs
from infra.db.tables import AttemptRow, RunRow

pytestmark = pytest.mark.usefixtures("ledger")
PAGE = "from dashboards.pages import fleet; fleet.show()"
TIERS = {"cheap": {"model": "small"}, "strong": {"model": "large"}}
ANSWERED, THROTTLED = OutcomeClass.ANSWERED, OutcomeClass.THROTTLED


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    rows.clear()


def attempt(n: int, *, tier: str = "cheap", stage: Stage = Stage.GENERATE, **changed: Any) -> Attempt:
    """A call of 100 tokens to a worker of its tier, or one that the ledger spared."""
    cached = bool(changed.get("cached"))
    known: dict[str, Any] = {
        "attempt_id": str(uuid.uuid4()),
        "stage": stage,
        "tier": tier,
        "record_key": f"{n:064d}",
        "request_hash": f"{n:064d}",
        "number": 0 if cached else 1,
        "cached": cached,
        "usage": Usage(90, 10, 30),
        "seconds": 0.0 if cached else 2.0,
        "usd": 0.001 * (n + 1),
        "worker": "ledger" if cached else f"http://{tier}:1",
        "outcome": ANSWERED,
    }
    return Attempt(**{**known, **changed})


def ran(workload: str, attempts: Sequence[Attempt]) -> str:
    """A completed run that made these calls."""
    run_id = str(uuid.uuid4())
    with transaction() as db:
        spec = {"tiers": TIERS}
        runs.open_run(db, run_id, kind="optimize", workload=workload, workload_hash="0" * 64, spec=spec, meters={})
        calls.save_attempts(db, run_id, attempts)
        runs.close_run(db, run_id, state="completed", meters={})
    return run_id


def shown(**query: str) -> AppTest:
    """The page as it is with these in its address."""
    page = AppTest.from_string(PAGE, default_timeout=60)
    page.query_params.update(query)
    page.run()
    assert not page.exception
    return page


def html_of(page: AppTest) -> str:
    """All that the page shows by way of HTML: figures and tables."""
    return "\n".join(element.proto.body for element in page.get("html"))


def figures(page: AppTest) -> dict[str, tuple[str, str]]:
    """Value and detail of each figure by its label."""
    found = re.findall(
        r'"label">(.*?)</div><div class="value">(.*?)</div><div class="detail">(.*?)</div>', html_of(page)
    )
    return {label: (value, detail) for label, value, detail in found}


MIXED = [
    *(attempt(n) for n in range(6)),
    attempt(6, outcome=THROTTLED, usage=Usage(0, 0, 0), usd=0.0, detail="busy: https://me:hush@host/x?key=hush"),
    attempt(6, number=2),
    attempt(7, tier="strong", stage=Stage.COMPILE),
    *(attempt(n, cached=True) for n in range(4)),
    attempt(9, tier="strong", cached=True),
]


def test_sums_are_those_of_the_ledger() -> None:
    workload = uuid.uuid4().hex
    ids = [ran(workload, MIXED), ran(workload, [attempt(3, tier="strong")])]
    page = shown(workload=workload)
    with transaction() as db:
        spent = [line for run_id in ids for line in calls.spending(db, run_id)]
    told, made = figures(page), sum(line.calls for line in spent)
    assert told["Paid"] == (usd(sum(line.usd for line in spent)), f"at list price, {made} calls, the last 7 days")
    assert told["Spared by the ledger"] == (
        usd(sum(line.spared_usd for line in spent)),
        f"at list price, {sum(line.cached for line in spent)} calls not made",
    )
    # 9 answers were paid for in all, 5 spared.
    assert told["Answered by the ledger"] == ("35.7 %", "of n = 14 answers")
    prompt, prefix = (sum(getattr(line.usage, kind) for line in spent) for kind in ("prompt", "cached"))
    hits = told["From the servers&#x27; prefix cache"]
    assert hits == (f"{100 * prefix / prompt:.1f} %", f"of n = {prompt:,} prompt tokens sent")
    assert any("tries of their request: 1 of n = 10 calls (10.00 %)" in caption.value for caption in page.caption)
    by_tier = {(line.tier, line.stage): line.usd for line in spent if line.calls}
    assert by_tier["cheap", "generate"] == pytest.approx(0.021 + 0.007)
    html = html_of(page)
    for said in ("small", "large", "compile", usd(by_tier["cheap", "generate"]), "throttled", "https://host/x?…"):
        assert said in html, said
    assert "hush" not in html


def test_one_run_only() -> None:
    workload = uuid.uuid4().hex
    ran(workload, MIXED)
    one = ran(workload, [attempt(1)])
    assert figures(shown(workload=workload, run=one))["Paid"] == ("$0.0020", "at list price, 1 call, the last 7 days")


def test_all_workloads_are_all_attempts() -> None:
    ran(uuid.uuid4().hex, MIXED)
    found, _ = added_up(since="1000 years", workload="", run="")
    (total,) = summed(found)
    a = AttemptRow
    with transaction() as db:
        paid = select(func.count(), func.sum(a.usd), func.sum(a.prompt_tokens)).where(~a.cached)
        made, money, prompt = db.execute(paid).one()
        spared, saved = db.execute(select(func.count(), func.sum(a.usd)).where(a.cached)).one()
    assert (total["calls"], total["prompt"], total["spared"]) == (made, prompt, spared)
    assert (total["usd"], total["spared_usd"]) == (pytest.approx(money), pytest.approx(saved))


def test_what_was_before_the_period_is_left_out() -> None:
    workload = uuid.uuid4().hex
    run_id = ran(workload, [attempt(n) for n in range(3)])
    with transaction() as db:
        long_ago = func.now() - timedelta(days=20)
        db.execute(update(RunRow).where(RunRow.id == run_id).values(started_at=long_ago))
        old = str(db.scalar(select(AttemptRow.attempt_id).where(AttemptRow.run_id == run_id).limit(1)))
        db.execute(update(AttemptRow).where(AttemptRow.attempt_id == old).values(at=long_ago))
    assert figures(shown(workload=workload))["Paid"][1] == "at list price, 2 calls, the last 7 days"
    assert figures(shown(workload=workload, period="month"))["Paid"][1] == "at list price, 3 calls, the last 30 days"


def test_rates_are_over_the_time_in_which_a_worker_was_used() -> None:
    workload = uuid.uuid4().hex
    run_id = ran(workload, [attempt(n) for n in range(2)])
    end = datetime(2026, 11, 23, 12, tzinfo=UTC)
    with transaction() as db:
        ids = db.scalars(select(AttemptRow.attempt_id).where(AttemptRow.run_id == run_id)).all()
        for n, attempt_id in enumerate(ids):
            at = end - timedelta(seconds=8 * n)
            db.execute(update(AttemptRow).where(AttemptRow.attempt_id == attempt_id).values(at=at))
    found, _ = added_up(since="1000 years", workload=workload, run="")
    assert working_s(found) == pytest.approx(10.0)  # eight seconds apart, and the first call took two
    html = html_of(shown(workload=workload, period="all"))
    assert ">0.2</td>" in html  # two rows in ten seconds
    assert ">20</td>" in html  # 200 tokens
    assert ">0.4</td>" in html  # four seconds of calls in ten: 0.4 in flight


def test_queue_shows_pending_rows_lost_runs_and_waiting_changes() -> None:
    workload, run_id = uuid.uuid4().hex, str(uuid.uuid4())
    with transaction() as db:
        runs.open_run(db, run_id, kind="route", workload=workload, workload_hash="0" * 64, spec={}, meters={})
        record = Record("r", {"text": "x"}, None, Split.INCOMING, Place("f", 1))
        runs.take_rows(db, run_id, [(record.key, 0), ("0" * 64, 1)])
        runs.save_progress(db, run_id, "generate cheap", done=1, total=2, unit="rows")
        said = [(workload, 3600.0)]
        deliveries.receive(db, source="own", delivery_id=run_id, body_hash="0" * 64, event="updated", datasets=said)
    page = shown(workload=workload)
    assert f"headrace resume {run_id}" in "\n".join(code.value for code in page.code)
    row = next(row for row in html_of(page).split("<tr>") if run_id[:8] in row)
    for said_of_it in ("nobody: lost", "generate cheap", ">2<", f'href="/run?run={run_id}"'):
        assert said_of_it in row
    assert int(figures(page)["Changes waiting"][0]) >= 1
    rows.clear()
    with transaction() as db:
        leases.take(db, f"fleet {run_id}", run_id, holder="vm pid 1", ttl_s=3600)
    page = shown(workload=workload)
    assert f"headrace resume {run_id}" not in "\n".join(code.value for code in page.code)
    assert "vm pid 1" in html_of(page)
    with transaction() as db:
        runs.close_run(db, run_id, state="failed", meters={})
        changes.settle(db, changes.waiting(db, workload), state="unchanged")


def test_no_calls_say_what_makes_some() -> None:
    workload = uuid.uuid4().hex
    ran(workload, [])
    page = shown(workload=workload)
    assert "headrace run support-triage" in [code.value for code in page.code]


@pytest.mark.parametrize(
    ("length", "width"),
    [
        (timedelta(seconds=90), 1),
        (timedelta(minutes=50), 30),
        (timedelta(hours=20), 900),
        (timedelta(days=300), 86_400),
    ],
)
def test_a_point_in_time_is_as_wide_as_it_must_be(length: timedelta, width: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert point_s(start, start + length) == width
    assert width == 86_400 or length.total_seconds() / width <= POINTS


def test_time_in_which_several_stages_used_a_worker_counts_once() -> None:
    start = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def used(run_id: str, first_s: float, last_s: float) -> dict[str, Any]:
        first, last = (start + timedelta(seconds=each) for each in (first_s, last_s))
        return {"run_id": run_id, "stage": "generate", "first": first, "last": last}

    assert working_s([used("a", 0, 10), used("b", 5, 12), used("c", 6, 7), used("d", 20, 21)]) == 13
    assert working_s([used("a", 0, 4), used("a", 8, 10)]) == 10  # one stage: also the time between its calls
    assert working_s([]) == 0


def test_the_sum_of_the_money_is_seen_however_many_days_there_are() -> None:
    workload, days = uuid.uuid4().hex, SHOWN + 1
    run_id = ran(workload, [attempt(0) for _ in range(days)])
    with transaction() as db:
        db.execute(update(RunRow).where(RunRow.id == run_id).values(started_at=func.now() - timedelta(days=days)))
        for n, each in enumerate(db.scalars(select(AttemptRow.attempt_id).where(AttemptRow.run_id == run_id)).all()):
            at = func.now() - timedelta(days=n)
            db.execute(update(AttemptRow).where(AttemptRow.attempt_id == each).values(at=at))
    html = html_of(shown(workload=workload, period="all"))
    money = html.split('aria-label="Money by day and model"')[1].split("</table>")[0]
    assert f"the first {SHOWN} of {days + 1}" in money
    (total, newest) = money.split("<tr>")[2:4]
    assert ">All<" in total
    assert f">{usd(0.001 * days)}<" in total
    assert f">{datetime.now(UTC):%Y-%m-%d}<" in newest


def test_look_ups_of_an_imported_run_that_say_that_they_were_not_answered_are_no_calls() -> None:
    workload = uuid.uuid4().hex
    ran(workload, [attempt(0), attempt(1, cached=True, outcome=THROTTLED)])
    assert "None of n = 1 call." in [caption.value for caption in shown(workload=workload).caption]


def test_what_the_selection_does_not_show_is_said() -> None:
    workload = uuid.uuid4().hex
    for _ in range(101):
        ran(workload, [])
    ran(workload, [attempt(0)])
    page = shown(workload=workload)
    said = [caption.value for caption in page.caption]
    assert any(each.startswith("The newest 100 of n = 102 runs are offered") for each in said)
    assert any(each.startswith("As it is now, of all workloads and runs") for each in said)
    assert "None of n = 1 call." in said


def test_a_run_of_another_workload_is_not_asked_for_any_more_once_the_workload_is_chosen() -> None:
    one, other = sorted(uuid.uuid4().hex for _ in range(2))
    run_id = ran(one, [attempt(0)])
    ran(other, [attempt(1)])
    page = shown(workload=one, run=run_id)
    (chooser,) = [box for box in page.selectbox if box.label == "Workload"]
    page = chooser.set_value(other).run()
    assert page.query_params.get("run", "") == ""
    assert figures(page)["Paid"][0] == "$0.0020"
