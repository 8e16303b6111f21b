"""Beginning a run: who started it, as Prefect told the process that carries it out."""

import logging

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from sqlalchemy.orm import Session

from domain.starts import Starter, starter
from infra.db.store import changes

log = logging.getLogger("headrace")


def is_scheduled() -> bool:
    """Whether a schedule started the current run."""
    run = _current()
    return run is not None and run.auto_scheduled is True


def started_by(db: Session) -> Starter | None:
    """Who started the current run; None, which is no reason for a run to fail, where Prefect has not said.

    Prefect is not asked: the process was given the run as Prefect knows it. A run of our dispatcher's is known by its
    idempotency key, which is in the ledger before Prefect hears of it.
    """
    run = _current()
    if run is None:
        log.warning("Prefect has not said how this run was started; the ledger leaves it open.")
        return None
    delivered = run.idempotency_key is not None and changes.is_reserved(db, run.idempotency_key)
    creator = run.created_by.type if run.created_by else None
    return starter(scheduled=run.auto_scheduled is True, creator=creator, delivered=delivered)


def _current() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context else None
