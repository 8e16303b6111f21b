"""The dashboard in a real Chromium: every page, with a run's data, with a million outcomes, and with hostile rows."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text

from infra.db.session import transaction
from infra.db.store import changes, deliveries, runs
from infra.db.tables import RecordRow
from infra.llm.scripted import Fault, Script, ScriptedServer
from infra.stack import Stack
from tests.e2e.browsing import BROWSER, DashboardPages, browsing
from tests.e2e.seeded import again, seed
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import BROKEN, RULES

PAGES = ("overview", "run", "router", "compare", "prompts", "quality", "data", "fleet", "triggers")
FILLED = {
    "overview": ("Verdict of each workload", "Last runs"),
    "run": ("Where the rows went", "Stages", "Cost by stage and tier"),
    "router": ("Signals compared", "Quality by confidence"),
    "compare": ("Differences",),
    "prompts": ("Versions", "Gain against cost", "Bundles"),
    "quality": ("Scores by metric and tier", "Most frequent confusions"),
    "data": ("Versions", "Runs on this version"),
    "fleet": ("Workers", "Money by day and model"),
    "triggers": ("Senders", "Deliveries"),
}
"""Tables that have rows on a page with something to show."""
WIDTHS = (1280, 390)
MANY, LABELLED = 1_000_000, 100_000
"""Outcomes of the large route run, and of the large run with gold labels."""
BEACON = "http://127.0.0.1:9/x"
HOSTILE = (
    "<script>window.__ran = 1</script>",
    f"<img src={BEACON} onerror='window.__ran = 1'>",
    f"![picture]({BEACON}) [link](javascript:window.__ran=1) **bold**",
    '=HYPERLINK("http://127.0.0.1:9/x")',
    "{{7*7}} ${7*7} $$\\\\href{javascript:window.__ran=1}{x}$$ :material/home:",
    "\u202egnp.exe " + "long" * 400,
)

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def ran(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A workload that was optimised and routed, some rows hostile, some never answered; its runs by kind."""
    folder = tmp_path_factory.mktemp("seen")
    fault = Fault(kind="status", status=400, match=r"over 10\\d7 ")
    small = Script(model="small", rules=RULES, noise=0.2, sharpness=8, seed=1, faults=(fault,))
    large = Script(model="large", rules=RULES, noise=0.05, seed=2)
    with ScriptedServer(small) as cheap, ScriptedServer(large) as strong:
        rows = {"rows": 240, "incoming": 60, "broken": BROKEN}
        written = scripted_workloads.write(folder / "w", name="seen", cheap=cheap, strong=strong, **rows)
        for file in ("labelled.jsonl", "incoming.jsonl"):
            with (written.folder / file).open("a") as out:
                for number, text in enumerate(HOSTILE):
                    gold = {"topic": "card"} if file == "labelled.jsonl" else {}
                    out.write(json.dumps({"id": f"{text[:60]}{number}", "text": text, **gold}) + "\n")
        found = {kind: written.run(flow).id for kind, flow in FLOWS.items()}
        _hear(found["route"])
        yield {**found, "again": again(found["route"], flipped="|".join(_hostile(found["route"])))}


def _hostile(run_id: str) -> list[str]:
    """The keys of a batch's hostile rows."""
    with transaction() as db:
        mine = RecordRow.dataset_version == runs.load_run(db, run_id).dataset_version
        return list(db.scalars(select(RecordRow.key).where(mine, RecordRow.record_id.not_like("i%"))))


def _hear(run_id: str) -> None:
    """Messages from outside, one of which led to a run."""
    with transaction() as db:
        for number, text in enumerate(HOSTILE):
            said = [(f"data {number}", 0.0)]
            deliveries.receive(db, source="own", delivery_id=text, body_hash="0" * 64, event=text[:200], datasets=said)
            changes.settle(db, changes.waiting(db, f"data {number}"), state="started", run_id=run_id, detail=text)


FLOWS = {"optimize": "optimize-workload", "route": "route-batch"}


@pytest.fixture(scope="module")
def many(ran: dict[str, str]) -> dict[str, str]:
    """A large run of each kind under a workload of their own."""
    sizes = {"optimize": LABELLED, "route": MANY}
    found = {kind: seed(ran[kind], rows, workload="many", seed=len(kind)) for kind, rows in sizes.items()}
    return {**found, "again": again(found["route"], flipped="[0-4]$")}


def addresses(page: str, workload: str, found: dict[str, str]) -> str:
    """A page's address, about a workload's runs."""
    wanted = {"run": "run={route}&", "compare": "a={route}&b={again}&"}.get(page, "")
    path = "" if page == "overview" else page  # Streamlit's first page has no path of its own
    return f"{path}?{wanted.format(**found)}workload={workload}"


def unfilled(pages: DashboardPages, page: str) -> list[str]:
    """Tables that a page should have and has not, or that have no rows."""
    return [name for name in FILLED[page] if not pages.has_rows(name)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_a_run(dashboard: str, ran: dict[str, str], tmp_path: Path, page: str, width: int) -> None:
    with browsing(dashboard, tmp_path, width=width) as pages:
        pages.open(addresses(page, "seen", ran))
        assert pages.page.locator("h1").count() == 1
        assert pages.failures() == []
        assert unfilled(pages, page) == []
        assert pages.inaccessible() == []
        assert pages.overflow() <= 0
        assert not pages.page.evaluate("() => window.__ran")
        pages.picture(page)
        assert pages.wrongs == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_a_million_outcomes(dashboard: str, many: dict[str, str], tmp_path: Path, page: str) -> None:
    with browsing(dashboard, tmp_path) as pages:
        pages.open(addresses(page, "many", many))
        assert pages.failures() == []
        assert unfilled(pages, page) == []
        pages.picture(f"many-{page}")
        assert pages.wrongs == []


def test_a_million_rows_are_counted(many: dict[str, str]) -> None:
    with transaction() as db:  # a plan that looks through all outcomes for each row would take days
        db.execute(text("SET LOCAL statement_timeout = '120s'"))
        rows = runs.conservation(db, many["route"])
    assert rows.holds
    assert (rows.records, rows.pending) == (MANY, 0)
    assert rows.quarantined > 0


def test_every_page_is_reached_by_the_keyboard(dashboard: str, ran: dict[str, str], tmp_path: Path) -> None:
    with browsing(dashboard, tmp_path) as pages:
        pages.open("")
        links = pages.page.locator('[data-testid="stSidebarNav"] a')
        assert links.count() == len(PAGES)
        reached: set[str] = set()
        for _ in range(200):
            pages.page.keyboard.press("Tab")
            reached.add(str(pages.page.evaluate("() => document.activeElement.getAttribute('href')")))
        assert {f"/{page}" for page in PAGES[1:]} <= {href.removeprefix(dashboard) for href in reached}
