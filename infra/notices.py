"""Notices: what others are told of, written down in the transaction in which it happens: no rows, prompts, secrets."""

import logging
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy.orm import Session

from domain.audit_verdicts import Report
from domain.bundles import Gate
from domain.errors import HeadraceError
from domain.promotions import Act
from domain.triggers import Endpoint, NoticeEvent
from infra.db.store import notices, runs
from infra.settings import load_settings
from infra.triggers import load_triggers

Json = dict[str, Any]
log = logging.getLogger("headrace")
TOLD_ENDS = {
    "failed": "the run failed; its page says why",
    "crashed": "the run's process died; `headrace resume` does the rest",
}


def promotion(
    db: Session, act: Act, *, workload: str, bundle_hash: str, reasons: Sequence[str], run_id: str | None = None
) -> None:
    """Tell of a bundle that became champion, or that the gate refused; what a run did is told once.

    `reasons` is what the gate has against it, or why it was promoted in spite of that.
    """
    event = NoticeEvent.GATE_FAILED if act is Act.REFUSED else NoticeEvent.PROMOTED
    data = {"workload": workload, "bundle": bundle_hash, "act": act.value, "reasons": list(reasons)}
    # By hand the same may happen twice, and then it is told twice.
    tell(db, event, f"{bundle_hash}/{run_id or uuid.uuid4()}", {**data, **_of_run(db, run_id)})


def gate(db: Session, verdict: Gate, *, workload: str, bundle_hash: str, run_id: str) -> None:
    """Tell what the gate said in a run."""
    act = Act.PROMOTED if verdict.passed else Act.REFUSED
    promotion(db, act, workload=workload, bundle_hash=bundle_hash, reasons=verdict.reasons, run_id=run_id)


def audit(db: Session, report: Report, *, workload: str, bundle_hash: str, run_id: str) -> None:
    """Tell of an audit that raised an alarm; of another one nothing."""
    if report.alarms:
        data = {"workload": workload, "bundle": bundle_hash, "reasons": list(report.alarms)}
        tell(db, NoticeEvent.AUDIT_ALARM, run_id, {**data, **_of_run(db, run_id)})


def end(db: Session, run_id: str, state: str) -> None:
    """Tell of a run that failed or crashed, once in its life; of another end nothing."""
    if state in TOLD_ENDS:
        run = runs.load_run(db, run_id)
        rows = runs.conservation(db, run_id)
        data = {"workload": run.workload, "kind": run.kind, "state": state, "bundle": run.bundle_hash}
        reasons = [TOLD_ENDS[state], *([f"rows: {rows}"] if rows.records else [])]
        tell(db, NoticeEvent.RUN_FAILED, run_id, {**data, "reasons": reasons, **_of_run(db, run_id)})


def tell(db: Session, event: NoticeEvent, what: str, data: Json) -> None:
    """Write a notice for every endpoint that wants the event; `what` names what happened, and is told once.

    A triggers.yaml that cannot be read is said in the log and stops nothing.
    """
    wanted = [name for name, endpoint in _endpoints().items() if event in endpoint.events]
    payload = {"type": event.value, "timestamp": datetime.now(UTC).isoformat(), "data": data}
    notices.add(db, wanted, key=f"{event.value}/{what}", event=event.value, payload=payload)


def _endpoints() -> dict[str, Endpoint]:
    try:
        return load_triggers(load_settings()).notify
    except (HeadraceError, OSError) as error:
        log.warning("nobody can be told: %s", error)
        return {}


def _of_run(db: Session, run_id: str | None) -> Json:
    if run_id is None or not runs.is_known(db, run_id):
        return {"run": run_id, "links": {}}
    return {"run": run_id, "links": {name: _bare(url) for name, url in runs.load_run(db, run_id).links.items()}}


def _bare(url: str) -> str:
    """A link without a user and password that a server's address may hold."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
