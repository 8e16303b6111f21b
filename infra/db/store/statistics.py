"""What the planner knows of the ledger's tables."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from infra.db.tables import (
    AnswerRow,
    AttemptRow,
    CompletionRow,
    OutcomeRow,
    QuarantinedRow,
    RecordRow,
    RunRowRow,
    ScoreRow,
)

WORTH_ROWS = 10_000
"""Smaller runs are read quickly whatever the planner takes them for."""
_TABLES = (RecordRow, RunRowRow, CompletionRow, AttemptRow, AnswerRow, ScoreRow, OutcomeRow, QuarantinedRow)


def refresh(db: Session) -> None:
    """Let Postgres look at a sample of the tables that runs fill; a second or two, whatever their size.

    It does so by itself, but minutes after a large run has ended. Until then it takes such a run for a few rows, joins
    by nested loops, and a page that needs a second takes a minute.
    """
    for table in _TABLES:
        db.execute(text(f"ANALYZE {table.__tablename__}"))
