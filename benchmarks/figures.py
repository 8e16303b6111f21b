"""Figures, their bars and the table: pure functions of what was measured."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

Verdict = Literal["met", "missed", "not run", ""]
COLOURS: dict[Verdict, str] = {"met": "green", "missed": "red", "not run": "yellow", "": "default"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A bound that a value should keep."""

    kind: Literal["at least", "at most", "below"]
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a value keeps it."""
        if self.kind == "at least":
            return value >= self.bound
        return value <= self.bound if self.kind == "at most" else value < self.bound

    def __str__(self) -> str:
        sign = {"at least": "≥", "at most": "≤", "below": "<"}[self.kind]
        return f"{sign} {self.bound:,g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; without a value `detail` says why it was not measured."""

    measure: str
    bar: Bar | None
    value: float | None
    unit: str = ""
    detail: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the bar says of the value; nothing where there is no bar."""
        if self.value is None:
            return "not run"
        if self.bar is None:
            return ""
        return "met" if self.bar.holds(self.value) else "missed"

    @property
    def shown(self) -> str:
        """The value as people read it: three digits, or whole from a thousand on."""
        if self.value is None:
            return "–"
        number = f"{self.value:,.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"
        return f"{number} {self.unit}".strip()

    def as_json(self) -> dict[str, str | float | None]:
        """The figure for programs."""
        return {
            "measure": self.measure,
            "bar": None if self.bar is None else str(self.bar),
            "value": self.value,
            "unit": self.unit,
            "verdict": self.verdict,
            "detail": self.detail,
        }


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios: each round is compared with itself, so a busy minute spoils one round."""
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through (x, y); 0 with fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def table(figures: Sequence[Figure]) -> Table:
    """All figures, one a line."""
    shown = Table(title="Speed and memory, measured in one run", show_lines=False)
    for column in ("measure", "bar", "value", "verdict", "how"):
        shown.add_column(column, justify="right" if column in {"bar", "value"} else "left", overflow="fold")
    for figure in figures:
        verdict = f"[{COLOURS[figure.verdict]}]{figure.verdict}[/]" if figure.verdict else ""
        shown.add_row(figure.measure, str(figure.bar or ""), figure.shown, verdict, figure.detail)
    return shown
