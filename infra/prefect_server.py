"""Prefect's server with schedules that fire: the `prefect` command itself, after one repair.

Prefect 3.8.8 plans a schedule's runs with one bulk INSERT whose rows have a key that is no column: `state`, a hybrid
attribute. SQLAlchemy 2.0 passed over it; 2.1, which our ledger uses, refuses the whole INSERT, so that no schedule
would ever fire, and only the server's log would say so. Here such a key is passed over again; the state is inserted
by Prefect's next statement, as ever.
"""

from collections.abc import MutableMapping
from typing import Any

from prefect.server.database.orm_models import FlowRun, TaskRun
from sqlalchemy import inspect
from sqlalchemy.ext.hybrid import hybrid_property

HYBRID = "state"


def repair() -> None:
    """Let bulk inserts of runs pass over their states."""
    for model in (FlowRun, TaskRun):
        found = inspect(model).all_orm_descriptors[HYBRID]
        if isinstance(found, hybrid_property) and found.bulk_dml_setter is None:
            found.bulk_dml_setter = _pass_over


def _pass_over(cls: type[object], mapping: MutableMapping[str, Any], value: object) -> None:
    """What SQLAlchemy calls for every row; the row is as Prefect wants it."""


def main() -> None:
    """Run the `prefect` command with the arguments of this process."""
    repair()
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
