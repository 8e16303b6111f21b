"""Prefect's scheduler beside our SQLAlchemy: planned runs are inserted with a key that is no column."""

import subprocess
import sys

import pytest

INSERT = """
import sys
import sqlalchemy as sa
from prefect.server.database.orm_models import FlowRun, TaskRun
from infra import prefect_server
if "repaired" in sys.argv:
    prefect_server.repair()
for model in (FlowRun, TaskRun):
    model.state._bulk_dml_setter("state")({"state": {}})
"""


@pytest.mark.parametrize(("how", "ends"), [("repaired", 0), ("as it is", 1)])
def test_a_planned_run_can_be_inserted_with_its_state_only_once_the_server_is_repaired(how: str, ends: int) -> None:
    """When the second case fails, Prefect or SQLAlchemy has mended it, and `infra/prefect_server.py` can go."""
    done = subprocess.run([sys.executable, "-c", INSERT, how], capture_output=True, text=True, check=False)
    assert done.returncode == ends, done.stderr
    assert ("bulk_dml" in done.stderr) == bool(ends)
