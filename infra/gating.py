"""A run against what is in use, for continuous integration: a verdict, as text, JSON and JUnit's XML."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from rich.console import Console
from rich.markup import escape
from sqlalchemy.orm import Session

from domain.bundle_diffs import compare_repeats
from domain.bundles import Bundle
from domain.datasets import Split
from domain.errors import InputError, NotFound, Place
from domain.regressions import Regression, judge_regression
from domain.workloads import TierName
from infra.aliasing import judged_rows, require_one_metric
from infra.db.session import transaction
from infra.db.store import bundles, runs
from infra.db.store.bundles import ALIASES, StoredBundle
from infra.terminal import print_json


@dataclass(frozen=True, slots=True)
class Gated:
    """The verdict on a run, the runs that repeat it, the bundle it was compared with, and what a reader should know."""

    run: str
    repeats: tuple[str, ...]
    against: str
    verdict: Regression
    notes: tuple[str, ...]


def gate_run(given: Sequence[str], against: str, *, max_drop: float, prove: bool) -> Gated:
    """Compare a run's cascade with a bundle in use on the test rows that all answered.

    Further runs are repeats of the first: the same models and prompts with other seeds. Raises NotFound when there is
    nothing to compare, and InputError when one of them is no repeat or was scored by another metric.
    """
    with transaction() as db:
        made = [_made(db, run) for run in given]
        first = made[0].bundle
        old = bundles.find_bundle(db, f"{against}@{first.workload}" if against in ALIASES else against)
    for run, other in zip(given, made, strict=True):
        if _without_seeds(other.bundle) != _without_seeds(first):
            raise InputError(Place(run), f"it is no repeat of {given[0]}: another model, prompt or sampling")
        require_one_metric(other, old)
    rows = compare_repeats(
        (judged_rows(old, Split.TEST), old.bundle.threshold),
        [(judged_rows(new, Split.TEST), new.bundle.threshold) for new in made],
    )
    if rows.quality.n == 0:
        raise NotFound(
            f"run {given[0][:8]} and the bundle {old.bundle.hash[:12]} have no test row in common.",
            hint="Make both on the same labelled rows.",
        )
    verdict = judge_regression(rows.quality, max_drop=max_drop, prove=prove)
    ids = tuple(str(new.run_id) for new in made)
    return Gated(ids[0], ids[1:], old.bundle.hash, verdict, _notes(old, made, rows.before_only + rows.after_only))


def _made(db: Session, run: str) -> StoredBundle:
    """The bundle that a run made."""
    found = runs.load_run(db, run)
    if found.bundle_hash is None or found.kind != "optimize" or found.state != "completed":
        raise NotFound(
            f"run {found.id[:8]} ({found.kind}, {found.state}) has no judged rows.",
            hint="Give a completed run of `optimize-workload`; `headrace runs` lists them.",
        )
    return replace(bundles.find_bundle(db, found.bundle_hash), run_id=found.id)


def _without_seeds(bundle: Bundle) -> list[tuple[str, dict[str, Any]]]:
    return [(bundle[name].prompt.hash, bundle[name].tier.model_dump(exclude={"seed"})) for name in TierName]


def _notes(old: StoredBundle, made: Sequence[StoredBundle], alone: int) -> tuple[str, ...]:
    notes = [f"{alone} test rows were not answered by all of them"] if alone else []
    parts = [stored.bundle[name].tier for stored in (old, *made) for name in TierName]
    if not any(tier.temperature > 0 for tier in parts):
        return tuple(notes)
    if len(made) == 1:
        notes.append(
            "a tier samples at random and one sample a row was compared: the interval is that of these samples; "
            "give further runs with other seeds as repeats"
        )
    else:
        notes.append(f"a tier samples at random: each row counts by its mean over {len(made)} runs")
    return tuple(notes)


def show_gated(console: Console, found: Gated, *, as_json: bool) -> None:
    """Print the verdict."""
    verdict = found.verdict
    if as_json:
        facts = {
            "run": found.run,
            "repeats": list(found.repeats),
            "against": found.against,
            **asdict(verdict),
            "notes": list(found.notes),
        }
        print_json(console, json.dumps(facts))
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
