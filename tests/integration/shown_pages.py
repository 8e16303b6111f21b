"""Pages of the dashboard as their text, and copies of the recorded run under a name of their own."""

import html
import re
import uuid
from dataclasses import dataclass
from typing import Any

from streamlit.testing.v1 import AppTest

from dashboards import queries
from domain.bundles import Bundle
from infra.db.session import transaction
from infra.db.store import bundles, runs
from tests.integration.recorded_runs import FILE, lines, run_of

RECORDED: dict[str, Any] = next(row for row in lines(FILE, "runs") if row["id"] == run_of("optimize"))
ROUTED: dict[str, Any] = next(row for row in lines(FILE, "runs") if row["id"] == run_of("route"))


@dataclass(frozen=True, slots=True)
class Shown:
    """A page that was drawn: the test's handle, what its blocks of HTML hold, and their words without tags."""

    test: AppTest
    blocks: list[str]
    words: str


def show(page: str, **address: str) -> Shown:
    """Draw a page with this address; whatever it raises fails the test."""
    queries.rows.clear()  # pages keep answers for a few seconds
    queries.of_version.clear()
    test = AppTest.from_string(f"from dashboards.pages import {page}; {page}.show()", default_timeout=60)
    for key, value in address.items():
        test.query_params[key] = value
    return read(test.run())


def read(test: AppTest) -> Shown:
    """What a page shows now."""
    assert not test.exception, test.exception
    blocks = [part.proto.body for part in test.get("html")]
    plain = [
        str(part.value) for kind in ("title", "subheader", "caption", "text", "info", "code") for part in test.get(kind)
    ]
    bare = re.sub(r"<[^>]+>", " ", " ".join(blocks))
    return Shown(test, blocks, re.sub(r"\s+", " ", html.unescape(bare) + " " + " ".join(plain)))


def downloads(shown: Shown) -> set[str]:
    """The names of the files that a page offers."""
    ids = " ".join(part.proto.id for part in shown.test.get("download_button"))
    return set(re.findall(r"download-([a-z-]+)", ids))


def own_workload() -> str:
    """A name that no other test's runs have."""
    return f"shown-{uuid.uuid4().hex[:8]}"


def save_run(workload: str, *, of: dict[str, Any] = RECORDED, bundle: Bundle | None = None, **summary: Any) -> str:
    """A completed run like a recorded one, with this bundle and with parts of the summary in the place of its own."""
    run_id = str(uuid.uuid4())
    with transaction() as db:
        spec = {**of["spec"], "name": workload}
        given = {"kind": of["kind"], "workload": workload, "workload_hash": of["workload_hash"], "spec": spec}
        runs.open_run(db, run_id, **given, meters={})
        runs.add_summary(db, run_id, {**of["summary"], **summary})
        if bundle is not None:
            bundles.save_bundle(db, bundle, run_id=run_id)
            runs.change_run(db, run_id, bundle_hash=bundle.hash)
        runs.change_run(db, run_id, dataset_version=of["dataset_version"])
        runs.close_run(db, run_id, state="completed", meters={})
    return run_id


def recorded_bundle(workload: str, **parts: Any) -> Bundle:
    """The recorded bundle under another workload's name, with other parts where they are given."""
    (row,) = lines(FILE, "bundles")
    return Bundle.model_validate({**row["body"], "workload": workload, **parts})
