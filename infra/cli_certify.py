"""The verb `certify`: a certificate for a table of anybody's router. No stack, no database."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from domain.errors import HeadraceError

verbs = typer.Typer()
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

Table = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE.csv",
        help="Columns id, cheap_quality, strong_quality, cheap_cost, strong_cost, and confidences: those called conf…, "
        "or else every other column of numbers, none called strong…. The higher, the surer; empty or NaN: escalate.",
    ),
]
Eps = Annotated[
    float | None, typer.Option(help="Largest loss of mean quality against the strong model alone. Default: 0.02.")
]
Rho = Annotated[
    float | None, typer.Option(help="Instead of --eps: the largest loss as a share of the strong model's quality.")
]
Delta = Annotated[float, typer.Option(help="Chance that the promise fails, over the draw of the rows.")]
Signal = Annotated[
    list[str] | None,
    typer.Option(help="The column of confidences, chosen before looking at the qualities. Several share delta."),
]
Agreement = Annotated[
    bool,
    typer.Option(
        "--agreement",
        help="Certify agreement with the strong model, not correctness: a column `agreement` (1: both answers are the "
        "same, else 0) stands in for the two qualities, and --eps bounds the kept rows that differ.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


CLOSEST = 1e-12
"""To 0 and to 1: beyond, sums of this precision say nothing."""
INTERRUPTED, UNEXPECTED = 130, 70
"""Exit codes of what is no verdict: 1 means "not certified" and nothing else."""


def _share(name: str, value: float) -> float:
    if not CLOSEST <= value <= 1 - CLOSEST:
        said = f"{value:g} is not between 0 and 1 (at least {CLOSEST:g} from either)"
        raise typer.BadParameter(said, param_hint=f"--{name}")
    return value


@verbs.command()
def certify(
    table: Table,
    eps: Eps = None,
    rho: Rho = None,
    delta: Delta = 0.10,
    signal: Signal = None,
    agreement: Agreement = False,
    as_json: AsJson = False,
) -> None:
    """Certify the cheapest safe threshold of any router from a csv file: 0 certified, 1 not certified, 2 bad input."""
    if rho is not None and (eps is not None or agreement):
        raise typer.BadParameter("it stands instead of --eps, and agreement knows no --rho", param_hint="--rho")
    _share("delta", delta)
    if rho is not None:
        kind, most = "relative", _share("rho", rho)
    else:
        kind, most = "agreement" if agreement else "absolute", _share("eps", 0.02 if eps is None else eps)
    try:
        from domain.certificates import Bound
        from infra import certifying, showing_certificates

        found = certifying.certify(table, Bound(kind, most, delta), signals=signal or ())
        showing_certificates.show_certified(console, found, as_json=as_json)
    except HeadraceError:
        raise
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception:  # noqa: BLE001 - whatever it is, it is not the verdict that exit code 1 means
        traceback.print_exc()
        raise typer.Exit(UNEXPECTED) from None
    if not found.verdict.certified:
        raise typer.Exit(1)
