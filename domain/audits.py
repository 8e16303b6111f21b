"""Audits: whether a certificate still holds on fresh rows: which rows are looked at, what each lost, and against what.

Two streams of losses are kept apart and never mixed. *Gold* is the loss of quality by the workload's metric; it alone
can break the promise. *Agreement* counts kept answers that differ from the strong tier's. It is known at once and is an
upper bound of the loss (an answer that is the same loses nothing), so much of it proves nothing against the promise: it
is compared with what the calibration rows showed, and more than that is a warning.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue
from scipy import special

from domain.canonical import share as share_of
from domain.eprocesses import Evidence, Game, Rates
from domain.verdicts import Kind

ALPHA = 0.05
TOLERANCE = 0.03
"""So much may the share of escalated rows move before the cost alarm looks at it."""
PLANNED = 0.8
"""Share of a budget in USD that rows are chosen for at the mean price; the rest is room for dearer ones."""


# ---- which rows


@dataclass(frozen=True, slots=True)
class Candidate:
    """A routed row: its place in the bundle's own random order, whether its cheap answer was kept, and where it is."""

    place: float
    key: str
    kept: bool
    run_id: str
    version: str


def place_of(key: str, bundle_hash: str) -> float:
    """A row's place in [0, 1): it depends on the row and the bundle, not on when the row came nor on its answers."""
    return share_of(key, salt=f"audit {bundle_hash}")


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows of an audit in the order of their places; `cut` were left out by the budget, from `share` on."""

    rows: list[Candidate]
    share: float
    cut: int


def choose(candidates: Iterable[Candidate], *, share: float, most: int | None) -> Choice:
    """A uniform share of all routed rows, kept or not, at most `most` of them kept ones (those cost a strong call).

    A budget lowers the share: it ends the list right behind the last row that it pays for, in the order of places, so
    that what is left is a uniform sample too. Of a row that came twice the first is taken.
    """
    found = {c.key: c for c in reversed([c for c in candidates if c.place < share])}
    ordered = sorted(found.values(), key=lambda c: (c.place, c.key))
    if most is None:
        return Choice(ordered, share, 0)
    kept = [i for i, c in enumerate(ordered) if c.kept]
    if len(kept) <= most:
        return Choice(ordered, share, 0)
    end = kept[most - 1] + 1 if most else 0
    return Choice(ordered[:end], ordered[end - 1].place if end else 0.0, len(ordered) - end)


def affordable(max_rows: int | None, max_usd: float | None, usd_a_row: float | None) -> int | None:
    """How many rows the strong tier may be asked about; None without a limit."""
    limits = [] if max_rows is None else [max_rows]
    if max_usd is not None and usd_a_row:
        limits.append(int(PLANNED * max_usd / usd_a_row))
    return min(limits, default=None)


# ---- what each lost


def loss(*, kept: bool, cheap: float, strong: float, rho: float = 0.0) -> float:
    """1{kept}(strong - cheap) - rho strong, from two qualities in [0, 1]; rho is 0 for an absolute target."""
    return (strong - cheap if kept else 0.0) - rho * strong


def differs(
    *, kept: bool, cheap: Mapping[str, JsonValue] | None, strong: Mapping[str, JsonValue] | None, fields: Iterable[str]
) -> float:
    """1 when a kept answer is not the strong one in a field that gold speaks of, else 0.

    Where the strong tier gave no valid answer nothing can have been lost against it.
    """
    if not kept or strong is None:
        return 0.0
    return float(any((cheap or {}).get(name) != strong.get(name) for name in fields))


class Pending(BaseModel):
    """An audited row that the gold stream has not counted; without `needs_gold` its loss is 0 whatever gold says."""

    model_config = ConfigDict(frozen=True)
    key: str
    needs_gold: bool
    has_gold: bool


P = TypeVar("P", bound=Pending)


def countable(rows: Sequence[P]) -> list[P]:
    """The rows that the gold stream may count now, in their order.

    Labels come late, and only for some rows. Counting escalated rows (loss 0) before the kept ones among them would
    dilute the loss; counting labelled rows alone would raise it. So rows are cut into pieces that end with a row that
    needs gold, and a piece is counted as a whole once that row is labelled. Whatever rows are labelled, provided that
    their answers have no say in it, what is counted is again a sample of the traffic.
    """
    counted: list[P] = []
    piece: list[P] = []
    for row in rows:
        piece.append(row)
        if row.needs_gold:
            counted += piece if row.has_gold else []
            piece = []
    return counted


# ---- what it is compared with


@dataclass(frozen=True, slots=True)
class Reference:
    """The judged rows of the run that made the bundle, routed by its threshold: counts, and the confidences by key."""

    rows: int = 0
    kept: int = 0
    differing: int = 0
    confidences: list[float] = field(default_factory=list[float])

    def most_differing(self, alpha: float) -> float | None:
        """Exact upper bound, at 1 - alpha, of the share of rows kept and unlike strong; None without rows."""
        return _upper(self.differing, self.rows, alpha) if self.rows else None

    def band(self) -> tuple[float, float] | None:
        """Where the share of escalated rows may lie: TOLERANCE about what was seen, or its exact 95 % interval."""
        if not self.rows:
            return None
        escalated = self.rows - self.kept
        rate = escalated / self.rows
        low = 1 - _upper(self.kept, self.rows, 0.025)
        return max(0.0, min(rate - TOLERANCE, low)), min(
            1.0, max(rate + TOLERANCE, _upper(escalated, self.rows, 0.025))
        )


def _upper(count: int, n: int, alpha: float) -> float:
    return 1.0 if count >= n else float(special.betaincinv(count + 1, n - count, 1 - alpha))


@dataclass(frozen=True, slots=True)
class Terms:
    """What the detectors test: the certificate's promise, the level, and what the calibration rows showed (None: not
    known, and then nothing is tested there)."""

    kind: Kind
    eps: float
    alpha: float
    differing: float | None
    band: tuple[float, float] | None

    @property
    def gold(self) -> Game:
        """The promise."""
        return Game(-1.0, 1 - self.eps, 0.0) if self.kind == "relative" else Game(-1.0, 1.0, self.eps)

    @property
    def agreement(self) -> Game:
        """An agreement certificate's promise; else as much as the calibration rows showed."""
        bound = self.eps if self.kind == "agreement" else self.differing
        return Game(0.0, 1.0, 1.0 if bound is None else bound)


class Watched(BaseModel):
    """What goes on from audit to audit."""

    model_config = ConfigDict(frozen=True)
    gold: Evidence = Evidence()
    agreement: Evidence = Evidence()
    escalation: Rates = Rates()
