"""How each declared signal is read: what there is to learn is learned here, on rows that no certificate looks at."""

from collections.abc import Sequence
from dataclasses import dataclass

from domain.figures import Row, feature_table, paired_rows, routed
from domain.learned_scores import LearnedScore, check_unseen
from domain.routers import Routing
from domain.shortcuts import straight_from
from domain.signals import FREE
from domain.workloads import SignalName, Workload
from infra.fitting import FitRows, Unfitted, fit_isotonic, fit_regret


@dataclass(frozen=True, slots=True)
class Routings:
    """The declared signals as they are read, and why one that was declared is not there."""

    ways: dict[SignalName, Routing]
    notes: tuple[str, ...] = ()


def routings_of(workload: Workload, fit: Sequence[Row], *, unseen: Sequence[str]) -> Routings:
    """Fit what the declared signals need.

    A signal that cannot be learned is left out, which no label of a calibration row decides; when none is left, the
    margin is read. `unseen` are the keys of the rows to certify on: raises LeakedRows when one of them is a fit row.
    """
    ordered = sorted(fit, key=lambda row: row.key)
    ways: dict[SignalName, Routing] = {}
    notes: list[str] = []
    for name in workload.router.signals:
        found = _routing(workload, ordered, name)
        if isinstance(found, Unfitted):
            notes.append(f"{name} is left out: {found.reason}")
            continue
        if found.score is not None:
            check_unseen(found.score.fitted, fit_keys=_fitted_keys(found.score, ordered, workload), keys=unseen)
        ways[name] = _with_shortcut(workload, ordered, found)
    margin = _with_shortcut(workload, ordered, Routing())
    return Routings(ways or {SignalName.MARGIN: margin}, tuple(notes))


def _routing(workload: Workload, rows: Sequence[Row], name: SignalName) -> Routing | Unfitted:
    if name is SignalName.SELF_CONSISTENCY:
        return Routing(signal=name, samples=workload.router.samples, temperature=workload.router.temperature)
    if name not in (SignalName.ISOTONIC, SignalName.REGRET):
        return Routing(signal=name)
    if not rows:
        return Unfitted("the ledger does not know both tiers' answers to the train split")
    given = FitRows(feature_table(rows, workload.decisive), paired_rows(rows))
    isotonic = name is SignalName.ISOTONIC
    fitted = fit_isotonic(given, workload.target) if isotonic else fit_regret(given, workload.target, signals=FREE)
    return fitted if isinstance(fitted, Unfitted) else Routing(signal=name, score=fitted.score)


def _fitted_keys(score: LearnedScore, rows: Sequence[Row], workload: Workload) -> list[str]:
    """The keys of the rows that have one of the score's signals: the others were of no use to it."""
    looked_at = Routing(signal=SignalName.REGRET, score=score).looked_at
    return [row.key for row in rows if any(name in row.cheap.signals for name in looked_at)]


def _with_shortcut(workload: Workload, rows: Sequence[Row], way: Routing) -> Routing:
    read = routed(rows, way, decisive=workload.decisive)
    return way.model_copy(update={"straight_from": straight_from(read, workload.target)}) if rows else way
