"""The two equations of the ledger, checked for a run: rows are conserved, tokens reconcile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from domain.ledgers import Conservation, Meter, Reconciliation, reconcile
from domain.requests import Usage
from domain.retentions import PRUNED
from infra.db.store import calls, runs
from infra.db.store.calls import Spending
from infra.db.store.runs import RunRecord


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found out about one run."""

    run: RunRecord
    rows: Conservation
    tokens: list[Reconciliation]

    @property
    def healthy(self) -> bool:
        """Whether nothing is known to be wrong: rows conserved, none left over, nobody lost or counted otherwise."""
        if self.run.state == PRUNED:
            return True  # `headrace prune` was ended half-way; what is left of the run goes the next time
        done = self.run.state != "completed" or self.rows.pending == 0
        return self.run.state != "lost" and self.rows.holds and done and all(t.holds is not False for t in self.tokens)


def diagnose(db: Session, run: RunRecord) -> Diagnosis:
    """Check one run."""
    return Diagnosis(run, runs.conservation(db, run.id), _tokens(run, calls.spending(db, run.id)))


def _tokens(run: RunRecord, spent: Sequence[Spending]) -> list[Reconciliation]:
    servers = sorted({*run.meters_before, *(s.worker for s in spent if s.calls)})
    return [
        reconcile(server, _sum(spent, server), _meter(run.meters_before, server), _meter(run.meters_after, server))
        for server in servers
    ]


def _sum(spent: Sequence[Spending], server: str) -> Usage:
    mine = [s.usage for s in spent if s.worker == server]
    return Usage(sum(u.prompt for u in mine), sum(u.completion for u in mine), sum(u.cached for u in mine))


def _meter(meters: dict[str, Any] | None, server: str) -> Meter | None:
    reading = (meters or {}).get(server)
    return Meter(int(reading["prompt"]), int(reading["completion"]), float(reading["started"])) if reading else None
