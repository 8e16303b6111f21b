"""The page Triggers, on a real ledger: what it says is what the store's own functions wrote."""

import re
import uuid
from datetime import timedelta

import pytest
from sqlalchemy import delete, func, update
from streamlit.testing.v1 import AppTest

from dashboards import lists, parts
from dashboards.queries import rows
from domain.canonical import digest
from domain.starts import Starter
from infra.db.session import transaction
from infra.db.store import changes, deliveries, notices, polls, runs
from infra.db.tables import RunRow
from infra.db.trigger_tables import ChangeRow, DeliveryRow, NoticeRow, PollRow, StartRow
from tests.integration.begun_runs import open_run

pytestmark = pytest.mark.usefixtures("ledger")
HOSTILE = "<script>alert(1)</script> ![x](http://127.0.0.1:9/x) \u202e=1+1"
PAGE = "from dashboards.pages import triggers; triggers.show()"


@pytest.fixture(autouse=True)
def nothing_before() -> None:
    """An inbox in which nobody else's messages are."""
    rows.clear()
    with transaction() as db:
        for table in (ChangeRow, DeliveryRow, StartRow, NoticeRow, PollRow):
            db.execute(delete(table))


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


def hear(source: str, *datasets: str, event: str = "updated") -> str:
    """A message is believed; its key."""
    id_ = uuid.uuid4().hex
    with transaction() as db:
        said = [(name, 0.0) for name in datasets]
        deliveries.receive(db, source=source, delivery_id=id_, body_hash=digest(id_), event=event, datasets=said)
    return deliveries.delivery_key(source, id_)


def settle(dataset: str, state: str, *, run_id: str | None = None, detail: str = "") -> None:
    """The dispatcher has dealt with a dataset's changes."""
    with transaction() as db:
        numbers = changes.waiting(db, dataset)
        changes.settle(db, numbers, state=state, version="5" * 64, run_id=run_id, detail=detail)


def test_empty_inbox_says_what_fills_it() -> None:
    page = shown()
    assert [code.value for code in page.code] == [
        "headrace webhooks send-test own DATASET",
        "headrace deploy WORKLOAD",
        "headrace notices test ENDPOINT",
    ]


def test_every_change_is_shown_with_what_became_of_it() -> None:
    run_id = open_run()
    with transaction() as db:
        runs.add_links(db, run_id, {"prefect": f"http://127.0.0.1:4200/runs/flow-run/{run_id}"})
    hear("own", "rows", "late")
    settle("rows", "started", run_id=run_id, detail=HOSTILE)
    settle("late", "failed", detail="https://somebody:hush@host/data?signature=hush cannot be read")
    hear("github")
    waits = hear("own", "rows")
    page = shown()
    html = html_of(page)
    for said in ("3</div>", "for 1 of 3 changes; 1 failed", "1 of them for no dataset of ours", "nothing for us"):
        assert said in html, said
    assert f'href="/run?run={run_id}"' in html
    assert f'href="http://127.0.0.1:4200/runs/flow-run/{run_id}"' in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "hush" not in html
    assert "https://host/data?…" in html
    assert "http://127.0.0.1:4200/deployments" in html
    # The newest delivery that means a dataset is offered first.
    assert f"headrace webhooks replay {waits[:10]}" in [code.value for code in page.code]
    with transaction() as db:
        assert deliveries.find_delivery(db, waits[:10]).key == waits


def test_one_state_at_a_time() -> None:
    hear("own", "rows")
    settle("rows", "unchanged", detail="still that")
    hear("own", "rows")
    html = html_of(shown(state="waiting"))
    assert "still that" not in html
    assert "waiting" in html


def test_a_replay_does_not_count_as_time_to_decide() -> None:
    key = hear("own", "rows")
    settle("rows", "unchanged")
    with transaction() as db:
        db.execute(update(DeliveryRow).values(received_at=func.now() - timedelta(hours=3)))
        deliveries.replay(db, key, ["rows"])
        first = changes.waiting(db, "rows")
        changes.settle(db, first, state="unchanged")
    caption = next(each.value for each in shown().caption if each.value.startswith("From message"))
    assert "median 3.0 hours" in caption
    assert "(n = 1 change, " in caption


def test_an_older_message_is_seen_in_a_longer_period_only() -> None:
    hear("own", "rows")
    with transaction() as db:
        db.execute(update(DeliveryRow).values(received_at=func.now() - timedelta(days=20)))
    assert ">own<" not in html_of(shown())
    assert ">own<" in html_of(shown(period="month"))


def test_starts_polls_and_notices_as_they_were_written() -> None:
    run_id = open_run()
    with transaction() as db:
        parameters = {"workload": "triage", "version": "7" * 64, "scope": "recheck", "max_usd": 2.5}
        changes.reserve(db, "headrace-1", flow="optimize-workload", parameters=parameters)
        changes.note_start(db, "headrace-1", run_id)
        changes.reserve(db, "headrace-2", flow="route-batch", parameters={"workload": "other"})
        polls.claim(db, "rows", 60)
        polls.remember(db, "rows", before="", now="f" * 64)
        polls.claim(db, "nowhere", 60)
        for number in range(3):
            notices.add(db, ["pager"], key=f"event/it's {number}", event="headrace.run.failed", payload={"k": "hush"})
        for number, notice in enumerate(notices.claim(db, most=3, lease_s=60)):
            if number < 2:
                notices.settle(db, notice, state="dead" if number else "delivered", error="410 Gone" if number else "")
    hear("poll", "rows")
    page = shown()
    html = html_of(page)
    for said in (f"{run_id[:8]} running", "not begun", "7" * 12, "recheck", "not yet", "410 Gone", "nowhere"):
        assert said in html, said
    assert "hush" not in html
    assert "1 delivered, 1 waiting" in html
    with transaction() as db:
        (dead,) = notices.load(db, state="dead")
    number = dead.key[-1]
    assert f"headrace notices retry 'event/it'\"'\"'s {number}'" in [code.value for code in page.code]
    assert "delivered" not in html_of(shown(notices="dead")).split("Last error")[-1]


def begun(starter: Starter | None, *, workload: str, kind: str = "optimize", state: str = "completed") -> str:
    """A run that somebody has started and that has ended so; its id."""
    run_id = str(uuid.uuid4())
    with transaction() as db:
        runs.open_run(db, run_id, kind=kind, workload=workload, workload_hash="0" * 64, spec={}, meters={})
        runs.change_run(db, run_id, started_by=starter)
        runs.close_run(db, run_id, state=state, meters={})
    return run_id


def rows_of(page: AppTest, name: str) -> list[list[str]]:
    """The cells of a table's rows, without tags."""
    (table,) = [part for part in html_of(page).split('aria-label="')[1:] if part.startswith(f'{name}"')]
    found = [re.findall("<td.*?</td>", row) for row in table.split("</table>")[0].split("<tr>")]
    return [[re.sub("<.*?>", "", cell) for cell in row] for row in found if row]


def test_schedules_and_what_their_runs_came_to() -> None:
    mine, other = f"nightly-{uuid.uuid4().hex[:8]}", f"weekly-{uuid.uuid4().hex[:8]}"
    old = begun(Starter.SCHEDULE, workload=mine, state="failed")
    unchanged = begun(Starter.SCHEDULE, workload=mine, state="unchanged")
    routed = begun(Starter.SCHEDULE, workload=mine, kind="route")
    long_ago = begun(Starter.SCHEDULE, workload=other)
    retuned = begun(Starter.AUTOMATION, workload=other)
    people = [begun(who, workload=mine) for who in (Starter.PERSON, Starter.DELIVERY, None)]
    with transaction() as db:
        db.execute(update(RunRow).where(RunRow.id == long_ago).values(started_at=func.now() - timedelta(days=20)))
    page = shown()
    known = [row for row in rows_of(page, "Schedules") if row[0] in (mine, other)]
    # Workload, flow, what the newest came to, its run, runs of the period: all, completed, unchanged, failed.
    assert [[row[0], row[1], *row[3:]] for row in known] == [
        [mine, "optimize-workload", "unchanged", unchanged[:8], "2", "0", "1", "1"],
        [mine, "route-batch", "completed", routed[:8], "1", "1", "0", "0"],
        [other, "optimize-workload", "completed", long_ago[:8], "0", "0", "0", "0"],
    ]
    listed = {row[5]: row[1:5] for row in rows_of(page, "Runs that schedules and automations started")}
    assert listed[old[:8]] == ["schedule", mine, "optimize-workload", "failed"]
    assert listed[retuned[:8]] == ["automation", other, "optimize-workload", "completed"]
    assert listed.keys().isdisjoint(run_id[:8] for run_id in [*people, long_ago])
    assert f'href="/run?run={unchanged}"' in html_of(page)
    assert any("by people, at Prefect's UI" in each.value for each in page.caption)
    assert any("by what is not on record" in each.value for each in page.caption)


def test_every_list_that_is_cut_says_of_how_many() -> None:
    n, parameters = lists.NEWEST + 1, {"workload": uuid.uuid4().hex}
    run = {"kind": "route", "workload": parameters["workload"], "workload_hash": "0" * 64, "spec": {}, "meters": {}}
    with transaction() as db:
        for each in map(str, range(n)):
            said = {"source": "own", "delivery_id": each, "body_hash": each, "event": "updated"}
            deliveries.receive(db, **said, datasets=[("rows", 0.0)])
            changes.reserve(db, f"headrace-{each}", flow="route-batch", parameters=parameters)
            notices.add(db, ["pager"], key=each, event="headrace.run.failed", payload={})
            runs.open_run(db, run_id := str(uuid.uuid4()), **run)
            runs.change_run(db, run_id, started_by=Starter.SCHEDULE)
    page = shown()
    told = f"The newest {lists.NEWEST} of n = {n} in this period, here and in the download."
    cut = [each.value for each in page.caption if each.value.startswith("The newest")]
    assert (
        cut[:2] + cut[3:] == [told] * 3
    )  # deliveries, what they started, notices; other tests have scheduled runs too
    assert len(cut) == 4
    assert len(rows_of(page, "Runs that schedules and automations started")) == parts.SHOWN
    assert f"the first {parts.SHOWN} of {lists.NEWEST}" in html_of(page)
    with transaction() as db:
        db.execute(delete(RunRow).where(RunRow.workload == parameters["workload"]))
