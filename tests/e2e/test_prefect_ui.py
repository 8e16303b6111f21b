"""H2, and the issue's browser: a run started, watched and cancelled in Prefect's own UI, in a real Chromium."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import sync_playwright
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from domain.ledgers import Stage
from infra import deploying, deployments, sweeping
from infra.db.session import transaction
from infra.db.store import runs
from infra.llm.scripted import Script, ScriptedServer
from infra.settings import Settings
from infra.stack import Stack
from tests.e2e.prefect_pages import FLAGS, PrefectPages, deployment_id
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import RULES, Written, diagnosed, ended
from tests.integration.test_stopping import completes_with_the_rest, flow_process, paid, settles_as, worker

CHROMIUM = Path("/usr/bin/chromium")
BROWSER = str(CHROMIUM) if CHROMIUM.exists() else shutil.which("chromium") or shutil.which("google-chrome")
ROWS, FEW, LATENCY_S = 150, 60, 0.5
ANSWERS = 2 * 75
"""Of a whole run: both tiers, calibration and test rows."""
STOPS_S, CANCELLED_S = 10.0, 30.0
"""What is promised: no new call after so long, Cancelled after so long. Each is the time that a test waits at most."""

pytestmark = [
    pytest.mark.usefixtures("running"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture
def workload(running: Stack, home: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Written]:
    """A workload of the user's own, deployed with one command; its models take their time."""
    small = Script(model="small", rules=RULES, latency_s=LATENCY_S, noise=0.25, sharpness=8, seed=1)
    large = Script(model="large", rules=RULES, latency_s=LATENCY_S, noise=0.05, seed=2)
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:30].rstrip("-")
    with ScriptedServer(small) as cheap, ScriptedServer(large) as strong:
        written = scripted_workloads.write(tmp_path / "workload", name=name, cheap=cheap, strong=strong, rows=ROWS)
        assert deploying.deploy(home=home.home, workload=str(written.folder))
        yield written


@pytest.fixture
def pages(running: Stack, tmp_path: Path) -> Iterator[PrefectPages]:
    """Prefect's UI, logged in."""
    surroundings = running.environment
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        yield PrefectPages(
            page,
            url=surroundings["PREFECT_API_URL"].removesuffix("/api"),
            auth=surroundings["PREFECT_API_AUTH_STRING"],
            pictures=tmp_path,
        )
        browser.close()


@pytest.fixture
def sweeper(home: Settings) -> Iterator[threading.Event]:
    """The sweeper, looking again and again as it does in the service of webhooks, once the event is set."""
    begin, over = threading.Event(), threading.Event()

    def go_on() -> None:
        begin.wait()
        while not over.wait(2):
            sweeping.turn(home)

    # Prefect's settings belong to the context that the fixtures have set up.
    thread = threading.Thread(target=copy_context().run, args=(go_on,))
    thread.start()
    yield begin
    over.set()
    begin.set()
    thread.join()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a test's figures; `pytest -rP` or `-s` shows them."""
    return lambda said: print(f"\n{request.node.name}: {said}")


def asked(workload: Written) -> int:
    return workload.cheap.calls.requests + workload.strong.calls.requests


def begun(pages: PrefectPages, workload: Written) -> UUID:
    """A run started from its form, with 30 % of its answers, its page open."""
    run = pages.start(deployment_id(f"optimize-workload/{workload.name}"))
    pages.open_run(run.id)
    deadline = time.monotonic() + 300
    while paid(run.id, Stage.GENERATE) < 0.3 * ANSWERS:
        assert time.monotonic() < deadline, "the run does not get anywhere"
        pages.page.wait_for_timeout(50)
    return run.id


def cancelled_in_time(
    pages: PrefectPages, workload: Written, run_id: UUID, *, once_clicked: Callable[[], None] | None = None
) -> str:
    """Click Cancel: the calls stop, the run ends as Cancelled in time and keeps what it has; returns the figures."""
    before, kept = asked(workload), paid(run_id, Stage.GENERATE)
    pages.cancel()
    clicked, ended_s, counted = time.monotonic(), None, before
    if once_clicked is not None:
        while not deployments.state_of(run_id)[0].startswith("Cancel"):  # a click is a request that takes its time
            assert time.monotonic() - clicked < CANCELLED_S
            pages.page.wait_for_timeout(50)
        once_clicked()
    while (waited_s := time.monotonic() - clicked) < CANCELLED_S and (ended_s is None or waited_s < STOPS_S):
        if waited_s < STOPS_S:
            counted = asked(workload)
        if ended_s is None and deployments.state_of(run_id)[0] == "Cancelled":
            ended_s = waited_s
        pages.page.wait_for_timeout(100)
    assert ended_s is not None, f"{deployments.state_of(run_id)} after {CANCELLED_S:.0f} s"
    settles_as(run_id, "cancelled")
    assert asked(workload) == counted, "a call was made later than promised"
    rows = diagnosed(str(run_id)).rows
    assert rows.holds
    assert rows.cancelled > 0
    assert paid(run_id, Stage.GENERATE) >= kept
    pages.page.reload()
    pages.sees("Cancelled")
    pages.picture("cancelled")
    return f"Cancelled after {ended_s:.1f} s, {counted - before} further calls, {rows}"


def test_a_run_started_from_its_form_completes(
    pages: PrefectPages, workload: Written, figures: Callable[[str], None]
) -> None:
    run = pages.start(deployment_id(f"optimize-workload/{workload.name}"), max_rows=FEW)
    pages.open_run(run.id)
    name, message = ended(run.id)
    assert name == "Completed", message
    pages.page.reload()
    pages.sees("Completed")
    pages.picture("completed")
    pages.open_tab("Artifacts")
    pages.picture("artifacts")
    with get_client(sync_client=True) as client:
        seen = client.read_flow_run(run.id)
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        shown = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=wanted)}
    with transaction() as db:
        record = runs.load_run(db, str(run.id))
    assert seen.parameters["max_rows"] == FEW
    assert seen.parameters["workload"] == str(workload.folder)
    assert seen.name == f"optimize-{workload.name}-{(record.dataset_version or '')[:8]}"
    assert f"workload:{workload.name}" in seen.tags
    found = diagnosed(str(run.id))
    assert (found.run.state, found.rows.pending) == ("completed", 0)
    assert 0 < found.rows.records <= FEW
    kinds = ("progress", "summary", "quarantine", "curve", "prefect", "mlflow", "phoenix")
    assert {f"{kind}-{workload.name}" for kind in kinds} <= shown.keys()
    progress = [key for key in shown if key and key.startswith("progress")]
    assert progress == [f"progress-{workload.name}"], "one artifact, whatever the stage"
    assert shown[progress[0]].data == 100
    figures(f"{found.rows}, {asked(workload)} calls")


def test_cancelled_at_a_third_and_resumed(
    pages: PrefectPages, workload: Written, figures: Callable[[str], None]
) -> None:
    run_id = begun(pages, workload)
    pages.picture("running")
    figures(cancelled_in_time(pages, workload, run_id))
    completes_with_the_rest(workload, run_id)


def test_cancelled_while_the_worker_is_dead(
    pages: PrefectPages, workload: Written, home: Settings, figures: Callable[[str], None]
) -> None:
    run_id = begun(pages, workload)
    flow = flow_process(home, run_id)
    worker(home).kill()
    assert flow.is_running()
    figures(cancelled_in_time(pages, workload, run_id))
    flow.wait(60)
    completes_with_the_rest(workload, run_id)


def test_cancelled_while_worker_and_process_are_dead(
    pages: PrefectPages,
    workload: Written,
    home: Settings,
    sweeper: threading.Event,
    figures: Callable[[str], None],
) -> None:
    run_id = begun(pages, workload)
    flow = flow_process(home, run_id)
    worker(home).kill()
    flow.kill()
    # Before the click the sweeper would call the run crashed, which it is.
    figures(cancelled_in_time(pages, workload, run_id, once_clicked=sweeper.set))
    completes_with_the_rest(workload, run_id)
