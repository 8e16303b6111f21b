"""How each declared signal is read: what there is to learn is learned here, on rows that no certificate looks at."""

from collections.abc import Sequence
from dataclasses import dataclass

from domain.figures import Row, feature_table, paired_rows, routed
from domain.learned_scores import IsotonicScore, LearnedScore, RegretScore, check_unseen
from domain.rankings import Ranking
from domain.routers import Routing
from domain.shortcuts import straight_from
from domain.signals import FREE
from domain.workloads import SignalName, Workload
from infra.fitting import FitRows, Fitted, Unfitted, fit_isotonic, fit_regret


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
        if isinstance(found, Fitted):
            check_unseen(found.score.fitted, fit_keys=_fitted_keys(found.score, ordered), keys=unseen)
            notes.append(f"{name} is fitted on {found.score.fitted.n} rows; out of fold {_said(found.figures)}")
            found = Routing(signal=name, score=found.score)
        ways[name] = _with_shortcut(workload, ordered, found)
    margin = _with_shortcut(workload, ordered, Routing())
    return Routings(ways or {SignalName.MARGIN: margin}, tuple(notes))


def _routing(
    workload: Workload, rows: Sequence[Row], name: SignalName
) -> Routing | Fitted[IsotonicScore] | Fitted[RegretScore] | Unfitted:
    if name is SignalName.SELF_CONSISTENCY:
        return Routing(signal=name, samples=workload.router.samples, temperature=workload.router.temperature)
    if name not in (SignalName.ISOTONIC, SignalName.REGRET):
        return Routing(signal=name)
    if not rows:
        return Unfitted("the ledger does not know both tiers' answers to the train split")
    given = FitRows(feature_table(rows, workload.decisive), paired_rows(rows))
    if name is SignalName.ISOTONIC:
        return fit_isotonic(given, workload.target)
    return fit_regret(given, workload.target, signals=FREE)


def _said(figures: Ranking) -> str:
    auroc, aurc = ("-" if figure is None else f"{figure:.3f}" for figure in (figures.auroc, figures.aurc))
    return f"AUROC {auroc}, AURC {aurc}, cost {figures.cost:.1%} of all-strong at the target"


def _fitted_keys(score: LearnedScore, rows: Sequence[Row]) -> list[str]:
    """The keys of the rows that have one of the score's signals: the others were of no use to it."""
    looked_at = Routing(signal=SignalName.REGRET, score=score).looked_at
    return [row.key for row in rows if any(name in row.cheap.signals for name in looked_at)]


def _with_shortcut(workload: Workload, rows: Sequence[Row], way: Routing) -> Routing:
    read = routed(rows, way, decisive=workload.decisive)
    return way.model_copy(update={"straight_from": straight_from(read, workload.target)}) if rows else way
