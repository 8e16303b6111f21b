"""The loss of quality over a bundle's audits, drawn for MLflow."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

# Okabe and Ito's palette, as in the other figures.
_BLUE, _BLACK = "#0072B2", "#222222"


@dataclass(frozen=True, slots=True)
class Look:
    """What an audit saw: rows counted so far, their mean loss, and its 95 % confidence sequence."""

    rows: int
    gap: float | None
    low: float
    high: float


def gap_over_audits(looks: Sequence[Look], *, allowed: float) -> bytes:
    """A PNG of the mean loss with its confidence sequence after each audit, against what the certificate allows."""
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    rows = [look.rows for look in looks]
    axes.fill_between(rows, [look.low for look in looks], [look.high for look in looks], color=_BLUE, alpha=0.15, lw=0)
    axes.plot(rows, [look.gap or 0.0 for look in looks], "o-", color=_BLUE, label="Mean loss, 95 % confidence sequence")
    axes.axhline(allowed, color=_BLACK, lw=1, ls=(0, (5, 4)), label="Allowed")
    axes.set_title("Loss of quality against the strong tier, over the bundle's audits", loc="left", fontweight="bold")
    axes.set_xlabel("Audited rows with a known loss")
    axes.set_ylabel("Loss")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
