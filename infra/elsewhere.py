"""Servers that somebody else runs: whether each answers at the address that the settings give."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psycopg
from sqlalchemy import make_url

from infra.llm.addresses import is_loopback
from infra.settings import Settings
from infra.startup import DIRECT, ServiceState

TIMEOUT_S = 5
Question = tuple[str, str, str, Callable[[], str]]
"""A service's name, what it is, where it is, and what asks it: the answer is what is wrong, empty when all is well."""


def states(settings: Settings) -> list[ServiceState]:
    """How every server with an address is now; nothing is started, no login is tried but Postgres's."""
    questions = _questions(settings)
    with ThreadPoolExecutor(max(len(questions), 1)) as pool:
        return list(pool.map(_state, questions))


def _questions(settings: Settings) -> list[Question]:
    found: list[Question] = []
    if url := settings.database_url:
        parts = make_url(url)  # the address without user and password
        found.append(("postgres", "The ledger", f"postgresql://{parts.host}:{parts.port or 5432}", lambda: _login(url)))
    pages = [
        ("prefect", "Prefect: runs, schedules, events", settings.prefect_api_url, "/health"),
        ("mlflow", "MLflow: experiments, prompts, bundles", settings.mlflow_tracking_uri, "/health"),
        ("phoenix", "Phoenix: traces and evaluations", settings.phoenix_endpoint, "/readyz"),
    ]
    pages += [
        (f"engine {model}", "A model server", base.removesuffix("/v1"), "/health")
        for model, base in sorted(settings.engines.items())
    ]
    for name, description, base, page in pages:
        if base:
            address = base.rstrip("/")
            found.append((name, description, address, lambda asked=address + page: _get(asked)))
    return found


def _state(question: Question) -> ServiceState:
    name, description, url, ask = question
    began = time.monotonic()
    wrong = ask()
    phase = "failed" if wrong else "healthy"
    return ServiceState(name, description, phase, url, seconds=time.monotonic() - began, detail=wrong)


def _get(url: str) -> str:
    if urlsplit(url).scheme not in {"http", "https"}:
        return "its address is neither http nor https"
    opener = DIRECT if is_loopback(url) else urllib.request.build_opener()
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return "" if answer.status == 200 else f"it answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}"
    except (urllib.error.URLError, OSError) as error:
        return f"no answer: {getattr(error, 'reason', error)}"


def _login(url: str) -> str:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(plain, connect_timeout=TIMEOUT_S) as db:
            db.execute("SELECT 1")
    except psycopg.Error as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return ""
