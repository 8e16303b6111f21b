"""Certifying a router that is not ours: from a table of outcomes to a certificate, without stack or database."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from domain.certificates import Bound, Certificate, NotCertified, Tuned, cheapest, tune_signals
from infra.routing_tables import RoutingTable, read_table

METRIC = "the table's quality columns"


@dataclass(frozen=True, slots=True)
class Certified:
    """What came of a table: every declared signal's tuning, and the one that was chosen."""

    file: Path
    table: RoutingTable
    bound: Bound
    tuned: dict[str, Tuned]
    signal: str

    @property
    def chosen(self) -> Tuned:
        """The tuning of the chosen signal."""
        return self.tuned[self.signal]

    @property
    def verdict(self) -> Certificate | NotCertified:
        """The verdict of the chosen signal; all of them are not certified when this one is not."""
        return self.chosen.verdict


def certify(file: Path, bound: Bound, *, signals: Sequence[str] = ()) -> Certified:
    """Certify the cheapest threshold on the table's confidences; raises DatasetError.

    Without named signals every column of confidences is one that was declared beforehand, and they share delta.
    """
    table = read_table(file, signals=signals, agreement=bound.kind == "agreement")
    tuned = tune_signals(table.signals, table.rows, bound, metric=METRIC)
    return Certified(file, table, bound, tuned, cheapest(tuned))
