"""A2: the process ends at its 1st, 2nd, 3rd … point, until a run gets through; each is started again and converges."""

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from infra.llm.scripted import Fault, Script, ScriptedServer
from tests.faults.hooks import DIED
from tests.faults.invariants import Verdict, check, paid
from tests.faults.material import ROW, RULES, write_workload
from tests.faults.nemesis import WINDOW, Foreman

pytestmark = pytest.mark.timeout(900)
ROWS = 12
SIDE_BY_SIDE = 4
FEWEST_POINTS = 50


@dataclass(frozen=True, slots=True)
class Swept:
    """What came of a death at one point; None when the run got through without reaching it."""

    point: str | None
    verdict: Verdict
    unknown: int
    """Calls that the server saw and the ledger has no attempt of."""


def sweep(foreman: Foreman, folder: Path, n: int) -> Swept:
    """A run that dies at its n-th point, and the same run again."""
    run_id = str(uuid.uuid4())
    wrong = Fault(kind="off_schema", match="row 5:", first=1)
    with ScriptedServer(Script(rules=RULES, row_pattern=ROW, faults=(wrong,))) as server:
        workload = write_workload(folder / f"point-{n}", strong=[server.base_url], rows=ROWS)
        flow = foreman.start(workload, run_id, "--die-at", str(n))
        code = flow.wait()
        assert code in (0, DIED), flow.said()
        if code == DIED:
            foreman.start(workload, run_id).finish()
        return Swept(flow.last().get("died"), check(run_id), server.calls.requests - paid(run_id)[0])


def test_a_run_that_dies_anywhere_converges_when_it_is_started_again(foreman: Foreman, folder: Path) -> None:
    swept: list[Swept] = []
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for first in count(1, SIDE_BY_SIDE):
            swept += pool.map(lambda n: sweep(foreman, folder, n), range(first, first + SIDE_BY_SIDE))
            if swept[-1].point is None:
                break
    died = [one for one in swept if one.point is not None]
    converged = [one for one in swept if one.verdict.holds() and one.verdict.done == ROWS]
    kinds = ", ".join(f"{count} {point}" for point, count in sorted(Counter(one.point for one in died).items()))
    print(f"\nA2: {len(died)} points ({kinds}), {len(swept) - len(converged)} that did not converge,", end=" ")
    print(f"at most {max(one.unknown for one in swept)} calls unknown to the ledger (the limit is {WINDOW})")
    assert len(died) >= FEWEST_POINTS
    assert {one.point for one in died} == {"before commit", "after commit", "before a request", "after replies"}
    assert converged == swept
    assert all(one.verdict.state == "completed" for one in swept)
    assert max(one.unknown for one in swept) <= WINDOW
    assert [one.unknown for one in swept if one.point is None] == [0] * (len(swept) - len(died))
