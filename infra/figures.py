"""Figures for MLflow, drawn by Matplotlib without a display."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from domain.certificates import CurvePoint

# Okabe and Ito's palette: told apart with every kind of colour vision; shapes and line styles differ as well.
_BLUE, _ORANGE, _GREEN, _BLACK, _GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#767676"
_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Anchor:
    """Quality and cost (USD per row) of one tier alone on the same rows."""

    quality: float
    cost: float


def cost_quality_curve(
    points: Sequence[CurvePoint],
    *,
    threshold: float | None,
    cheap: Anchor,
    strong: Anchor,
    floor: float | None = None,
    title: str = "Cost and quality of the cascade",
) -> bytes:
    """A PNG of what each threshold costs and answers; `floor` is the lowest quality that the certificate allows.

    The band spans the certified thresholds, the diamond is the chosen one (none when nothing was certified).
    """
    figure = Figure(figsize=(8, 5.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _draw_points(axes, sorted(points, key=lambda p: p.cost))
    axes.plot(
        cheap.cost * _ROWS, cheap.quality, "s", color=_GREY, ms=10, mec="white", zorder=4, label="Cheap tier alone"
    )
    axes.plot(
        strong.cost * _ROWS, strong.quality, "^", color=_BLACK, ms=11, mec="white", zorder=4, label="Strong tier alone"
    )
    if floor is not None:
        axes.axhline(floor, color=_BLACK, lw=1, ls=(0, (5, 4)), zorder=1, label="Lowest quality allowed")
    chosen = next((p for p in points if threshold is not None and p.threshold == threshold), None)
    subtitle = "No threshold was certified: every row goes to the strong tier"
    if chosen is not None:
        label = f"Chosen: keep when confidence ≥ {chosen.threshold:.3f}"
        axes.plot(chosen.cost * _ROWS, chosen.quality, "D", color=_GREEN, ms=11, mec="white", zorder=5, label=label)
        subtitle = _summary(chosen, strong)
    axes.set_title(f"{title}\n", loc="left", fontweight="bold", fontsize=12)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=10, color=_BLACK, in_layout=False)
    axes.set_xlabel("Cost (USD per 1,000 rows)")
    axes.set_ylabel("Quality (mean of the workload's metric)")
    axes.grid(color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.06, 0.1)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _draw_points(axes: Axes, ordered: Sequence[CurvePoint]) -> None:
    axes.plot([p.cost * _ROWS for p in ordered], [p.quality for p in ordered], "-", color="#BBBBBB", lw=1.2, zorder=2)
    certified = [p for p in ordered if p.passed]
    others = [p for p in ordered if not p.passed]
    if certified:
        low, high = certified[0].cost * _ROWS, certified[-1].cost * _ROWS
        axes.axvspan(low, high, color=_BLUE, alpha=0.10, lw=0, zorder=0, label="Certified region")
    for group, marker, colour, face, label in (
        (others, "o", _ORANGE, "white", "Threshold, not certified"),
        (certified, "o", _BLUE, _BLUE, "Threshold, certified"),
    ):
        if group:
            x, y = [p.cost * _ROWS for p in group], [p.quality for p in group]
            axes.plot(x, y, marker, ms=4.5, mec=colour, mfc=face, zorder=3, label=label)


def _summary(chosen: CurvePoint, strong: Anchor) -> str:
    difference = f"{chosen.quality - strong.quality:+.3f}".replace("-", "\N{MINUS SIGN}")
    saved = f"{1 - chosen.cost / strong.cost:.0%} cheaper" if strong.cost > 0 else "no saving"
    return f"{chosen.kept:.0%} of the rows kept; against the strong tier alone: {saved}, quality {difference}"
