"""Prefect's UI as a person uses it: logging in, starting a run from its form, cancelling one."""

import time
from pathlib import Path
from uuid import UUID

from playwright.sync_api import Page, expect
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

PATIENCE_MS = 60_000
FLAGS = (
    "--no-sandbox",  # of which root, in a container, has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class PrefectPages:
    """The pages, logged in, and a folder for pictures of them."""

    def __init__(self, page: Page, *, url: str, auth: str, pictures: Path) -> None:
        self.page = page
        self._url = url
        self._pictures = pictures
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        # It asks once; the string stays in the browser.
        page.locator("input[type=password]").fill(auth)
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name="Deployments").first).to_be_visible(timeout=PATIENCE_MS)

    def picture(self, name: str) -> None:
        """Keep what is to be seen, once it has been drawn."""
        self.page.wait_for_timeout(2500)
        self.page.screenshot(path=self._pictures / f"{name}.png")

    def start(self, deployment: UUID, *, max_rows: int | None = None) -> FlowRun:
        """Fill in a deployment's form and submit it; returns the run that came of it."""
        before = {run.id for run in _runs(deployment)}
        self.page.goto(f"{self._url}/deployments/deployment/{deployment}")
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run", exact=True).click()
        field = self.page.locator(".schema-form-property").filter(has_text="max_rows").last
        expect(field).to_be_visible(timeout=PATIENCE_MS)
        if max_rows is not None:
            field.get_by_role("button", name="int").click()
            field.locator("input[type=number]").fill(str(max_rows))
        self.picture("form")
        self.page.get_by_role("button", name="Submit").click()
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not (new := [run for run in _runs(deployment) if run.id not in before]):
            assert time.monotonic() < deadline, "the form started nothing"
            self.page.wait_for_timeout(200)
        (run,) = new
        return run

    def open_run(self, run_id: UUID) -> None:
        """A run's page."""
        self.page.goto(f"{self._url}/runs/flow-run/{run_id}")
        # There are more tabs once the run has begun.
        expect(self.page.get_by_text("Parameters", exact=True).first).to_be_visible(timeout=PATIENCE_MS)

    def open_tab(self, name: str) -> None:
        """One of the tabs of the page that is open."""
        self.page.get_by_text(name, exact=True).first.click()

    def cancel(self) -> None:
        """Click Cancel on the run's page, and Confirm."""
        self.page.get_by_role("button", name="Cancel", exact=True).click()
        self.page.get_by_role("button", name="Confirm", exact=True).click()

    def sees(self, text: str) -> None:
        """Wait until the page says so."""
        expect(self.page.get_by_text(text, exact=True).first).to_be_visible(timeout=PATIENCE_MS)


def deployment_id(name: str) -> UUID:
    """A deployment by flow/deployment."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name).id


def _runs(deployment: UUID) -> list[FlowRun]:
    wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
