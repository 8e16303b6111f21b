"""The verbs on bundles: list, show, diff, promote, roll back; and on runs: diff, gate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from domain.errors import TraceStoreError
from infra import stack

if TYPE_CHECKING:
    from infra.aliasing import Moved

verbs = typer.Typer()
one = typer.Typer(no_args_is_help=True, help="Look at one bundle, or at two side by side.")
verbs.add_typer(one, name="bundle")
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

Reference = Annotated[str, typer.Argument(metavar="BUNDLE", help="A hash or its beginning; champion@W, challenger@W.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
NOT_IN_MLFLOW = "  MLflow does not hold this bundle: its aliases stay where they are"
Folder = Annotated[str, typer.Option("--workload", help="The workload's folder, where it is not found by its name.")]


@verbs.command()
def bundles(
    workload: Annotated[str, typer.Option(help="Only those of this workload, by its name.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the bundles, newest first."""
    stack.connect()
    from infra import showing_bundles

    showing_bundles.list_bundles(console, workload or None, as_json=as_json)


@one.command()
def show(bundle: Reference, workload: Folder = "", as_json: AsJson = False) -> None:
    """Show a bundle: what it promises, whether that still holds, where it comes from, who promoted it."""
    settings = stack.connect()
    from infra import showing_bundles

    showing_bundles.show_bundle(console, bundle, workload, settings, as_json=as_json)


@one.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="As for `bundle show`.")],
    after: Annotated[str, typer.Argument(metavar="B", help="As for `bundle show`.")],
    as_json: AsJson = False,
) -> None:
    """Show what differs between two bundles, and what they did to the rows that both answered."""
    stack.connect()
    from infra import showing_diffs

    showing_diffs.show_diff(console, before, after, as_json=as_json)


@one.command()
def challenger(
    bundle: Reference,
    threshold: Annotated[float, typer.Option(help="Keep the cheap answer from this confidence on.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit table.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a certified bundle with another threshold challenger: 0 done, 1 that one is not certified, 2 wrong use,
    3 MLflow is down."""
    stack.connect()
    from infra import challenging, showing_bundles

    made = challenging.challenge(bundle, threshold, reason=reason.strip() or None)
    showing_bundles.show_challenger(console, made, as_json=as_json)
    try:
        known = challenging.show_in_mlflow(made)
    except TraceStoreError as error:
        again = "The challenger is made. The same command tells MLflow once it is up."
        raise TraceStoreError(error.message, hint=again) from error
    if not known and not as_json:
        console.print(NOT_IN_MLFLOW, markup=False)


@verbs.command(name="diff")
def diff_(
    before: Annotated[str, typer.Argument(metavar="RUN_A", help="A run's id or its beginning.")],
    after: Annotated[str, typer.Argument(metavar="RUN_B", help="Another run of the same workload.")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs row by row: quality, cost, flipped rows, and what each flip is put down to."""
    stack.connect()
    from infra import showing_run_diffs

    showing_run_diffs.show(console, before, after, as_json=as_json)


@verbs.command()
def gate(
    run: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="A completed run of optimize-workload; further ones repeat it."),
    ],
    against: Annotated[str, typer.Option(help="champion, challenger, or a bundle's hash.")] = "champion",
    max_drop: Annotated[float, typer.Option(min=0, max=1, help="Loss of quality that is allowed.")] = 0.01,
    prove: Annotated[bool, typer.Option("--prove", help="Pass only when the rows prove it.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the verdict into this JUnit file as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a run for continuous integration: 0 passed, 1 failed, 2 wrong use, 3 something is down."""
    stack.connect()
    from infra import gating

    found = gating.gate_run(run, against, max_drop=max_drop, prove=prove)
    gating.show_gated(console, found, as_json=as_json)
    if junit is not None:
        gating.write_junit(junit, found)
    if not found.verdict.passed:
        raise typer.Exit(1)


@verbs.command()
def promote(
    bundle: Reference,
    workload: Folder = "",
    force: Annotated[bool, typer.Option("--force", help="Even if the gate refuses; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit table.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a bundle champion when it passes the gate: 0 done, 1 refused, 2 wrong use, 3 MLflow is down."""
    if force and not reason.strip():
        raise typer.BadParameter('--force needs --reason "…"')
    settings = stack.connect()
    from infra import aliasing, showing_bundles
    from infra.workloads import find_workload, load_workload

    name = workload or showing_bundles.workload_of(bundle)
    loaded = load_workload(find_workload(name, settings.workloads))
    moved = aliasing.promote(bundle, loaded, settings, forced=force, reason=reason.strip() or None)
    _moved(moved, as_json=as_json)


@verbs.command()
def rollback(
    workload: Annotated[str, typer.Argument(help="A workload's name, or its folder.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit table.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make the champion before this one champion again: 0 done, 1 there was none, 2 wrong use, 3 MLflow is down."""
    settings = stack.connect()
    from infra import aliasing
    from infra.workloads import find_workload, load_workload

    name = workload
    if Path(workload).exists():
        name = load_workload(find_workload(workload, settings.workloads)).workload.name
    _moved(aliasing.roll_back(name, reason=reason.strip() or None), as_json=as_json)


def _moved(moved: "Moved", *, as_json: bool) -> None:
    from infra import registry, showing_bundles

    # The ledger first: it is what route_batch reads. MLflow shows the same, and may be told again.
    showing_bundles.show_moved(console, moved, as_json=as_json)
    try:
        known = registry.mirror(moved.bundle, "champion")
    except TraceStoreError as error:
        again = f"The champion is made. `headrace promote {moved.bundle.hash[:12]}` tells MLflow once it is up."
        raise TraceStoreError(error.message, hint=again) from error
    if not known and not as_json:
        console.print(NOT_IN_MLFLOW, markup=False)
