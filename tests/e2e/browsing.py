"""A Chromium that writes down what a page should not do: errors on its console, and requests that leave the machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from tests.e2e.prefect_pages import FLAGS

CHROMIUM = Path("/usr/bin/chromium")
BROWSER = str(CHROMIUM) if CHROMIUM.exists() else shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_MS = 120_000
QUIET_MS = 700
UNDRAWN = '[data-testid="stSkeleton"], [data-testid="stAppSkeleton"]'
"""What stands in for an element whose own script has not been loaded yet."""
BUSY = f'[data-testid="stStatusWidget"], [data-testid="stSpinner"], [data-stale="true"], {UNDRAWN}'
QUIET = f"""() => {{
    const ended = document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    if (!ended || document.querySelector('{BUSY}')) {{ window.__quietSince = undefined; return false }}
    window.__quietSince ??= performance.now()
    return performance.now() - window.__quietSince >= {QUIET_MS}
}}"""
"""Whether the page's script has ended and every element has been drawn, at each look since QUIET_MS."""
PROBES = ("/_stcore/health", "/_stcore/host-config")
FAILED = '[data-testid="stException"], [data-testid="stAlertContentError"]'


class DashboardPages:
    """The dashboard in a window; `wrongs` collects what no page may do."""

    def __init__(self, page: Page, url: str, pictures: Path) -> None:
        self.page = page
        self.wrongs: list[str] = []
        self._url = url
        self._pictures = pictures
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.wrongs.append(f"error: {error}"))
        page.on("request", self._asked)

    def _heard(self, message: ConsoleMessage) -> None:
        # Under a page's address Streamlit's own client asks for its server in two wrong places before the right one.
        if message.type == "error" and not message.location["url"].endswith(PROBES):
            self.wrongs.append(f"console: {message.text}")

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self._url).netloc:
            self.wrongs.append(f"request: {request.url}")

    def open(self, path: str) -> None:
        """Go to a page and wait until nothing on it changes any more."""
        self.page.goto(f"{self._url}/{path}")
        self.page.wait_for_selector("h1")
        self.settle()

    def settle(self) -> None:
        """Wait until the script has run to its end and its charts are drawn."""
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_function(QUIET, polling=100)

    def failures(self) -> list[str]:
        """What the page says went wrong."""
        return self.page.locator(FAILED).all_inner_texts()

    def has_rows(self, table: str) -> bool:
        """Whether a table has rows, or gets some while one can wait."""
        try:
            self.page.wait_for_selector(f'[role="region"][aria-label="{table}"] tbody tr', state="attached")
        except PlaywrightTimeoutError:
            return False
        return True

    def inaccessible(self) -> list[str]:
        """Violations of axe's rules on contrast, names, labels, order and keyboard, each with where it is.

        Streamlit's own menu is a list that holds more than items, which no page can mend: lists are judged elsewhere.
        """
        menu = {"rules": {"list": {"enabled": False}, "listitem": {"enabled": False}}}
        found = [
            *Axe().run(self.page, options=menu).response["violations"],
            *Axe().run(self.page, "[data-testid=stMain]").response["violations"],
        ]
        nodes = {(rule["id"], str(node["target"]), node["html"][:200]) for rule in found for node in rule["nodes"]}
        return sorted(": ".join(node) for node in nodes)

    def picture(self, name: str) -> Path:
        """The whole page as a picture."""
        width = (self.page.viewport_size or {"width": 1280})["width"]
        height = self.page.evaluate("() => document.querySelector('[data-testid=stMain]')?.scrollHeight ?? 900")
        self.page.set_viewport_size({"width": width, "height": max(900, min(int(height) + 40, 8000))})
        self.page.wait_for_timeout(500)
        path = self._pictures / f"{name}-{width}.png"
        self.page.screenshot(path=path)
        return path

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return int(self.page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth"))


@contextmanager
def browsing(url: str, pictures: Path, *, width: int = 1280) -> Iterator[DashboardPages]:
    """The dashboard in a new browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        try:
            pages = DashboardPages(browser.new_page(viewport={"width": width, "height": 900}), url, pictures)
            try:
                yield pages
            except AssertionError:
                pages.picture("failed")
                raise
        finally:
            browser.close()
