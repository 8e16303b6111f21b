"""A run against what is in use, for continuous integration: a verdict, as text, JSON and JUnit's XML."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from xml.etree import ElementTree as Xml

from rich.console import Console
from rich.markup import escape

from domain.bundle_diffs import compare_cascades
from domain.datasets import Split
from domain.errors import InputError, NotFound, Place
from domain.regressions import Regression, judge_regression
from domain.workloads import TierName
from infra.aliasing import judged_rows
from infra.db.session import transaction
from infra.db.store import bundles, runs
from infra.db.store.bundles import ALIASES, StoredBundle


@dataclass(frozen=True, slots=True)
class Gated:
    """A run's verdict, the run and the bundle that it was compared with, and what a reader should know."""

    run: str
    against: str
    verdict: Regression
    notes: tuple[str, ...]


def gate_run(run: str, against: str, *, max_drop: float, prove: bool) -> Gated:
    """Compare a run's cascade with a bundle in use on the test rows that both answered.

    Raises NotFound when there is nothing to compare.
    """
    with transaction() as db:
        found = runs.load_run(db, run)
        if found.bundle_hash is None or found.kind != "optimize" or found.state != "completed":
            raise NotFound(
                f"run {found.id[:8]} ({found.kind}, {found.state}) has no judged rows.",
                hint="Give a completed run of `optimize-workload`; `headrace runs` lists them.",
            )
        new = replace(bundles.find_bundle(db, found.bundle_hash), run_id=found.id)
        old = bundles.find_bundle(db, f"{against}@{found.workload}" if against in ALIASES else against)
    rows = compare_cascades(
        judged_rows(old, Split.TEST),
        judged_rows(new, Split.TEST),
        thresholds=(old.bundle.threshold, new.bundle.threshold),
    )
    if rows.quality.n == 0:
        raise NotFound(
            f"run {found.id[:8]} and the bundle {old.bundle.hash[:12]} have no test row in common.",
            hint="Make both on the same labelled rows.",
        )
    verdict = judge_regression(rows.quality, max_drop=max_drop, prove=prove)
    return Gated(found.id, old.bundle.hash, verdict, _notes(old, new, rows.before_only + rows.after_only))


def _notes(old: StoredBundle, new: StoredBundle, alone: int) -> tuple[str, ...]:
    notes = [f"{alone} test rows were answered by one of the two only"] if alone else []
    parts = [stored.bundle[name].tier for stored in (old, new) for name in TierName]
    if any(tier.temperature > 0 for tier in parts):
        notes.append(
            "a tier samples at random and one sample a row was compared: the interval is that of these samples"
        )
    return tuple(notes)


def show_gated(console: Console, found: Gated, *, as_json: bool) -> None:
    """Print the verdict."""
    verdict = found.verdict
    if as_json:
        facts = {"run": found.run, "against": found.against, **asdict(verdict), "notes": list(found.notes)}
        console.print_json(json.dumps(facts))
        return
    mark = "[green]passed[/]" if verdict.passed else "[red]failed[/]"
    interval = escape(f"{verdict.drop:+.3f} [{verdict.low:+.3f}, {verdict.high:+.3f}]")
    console.print(f"{mark}  run {found.run[:8]} against {found.against[:12]}: {verdict.reason}")
    console.print(f"  drop      {interval}  n={verdict.n}, allowed {verdict.max_drop:g}")
    for note in found.notes:
        console.print(f"  note      {escape(note)}")


def write_junit(file: Path, found: Gated) -> None:
    """Write the verdict as one test case of a JUnit file; raises InputError where it cannot be written."""
    verdict = found.verdict
    said = f"drop {verdict.drop:+.4f} [{verdict.low:+.4f}, {verdict.high:+.4f}], n={verdict.n}"
    suite = Xml.Element("testsuite", name="headrace gate", tests="1", failures=str(int(not verdict.passed)))
    case = Xml.SubElement(suite, "testcase", classname=f"run {found.run}", name=f"quality against {found.against[:12]}")
    if not verdict.passed:
        Xml.SubElement(case, "failure", message=verdict.reason).text = said
    Xml.SubElement(case, "system-out").text = "\n".join([f"{verdict.reason}: {said}", *found.notes])
    try:
        Xml.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise InputError(Place(str(file)), f"the file cannot be written: {error.strerror}") from error
