"""Audit verdicts: what the detectors of an audit say, in words, and what each of them can and cannot see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from domain.audits import ALPHA, Terms, Watched
from domain.eprocesses import DETECTOR_ALARM, interval
from domain.verdicts import Kind

State = Literal["alarm", "quiet", "untested", "nothing", "void"]


@dataclass(frozen=True, slots=True)
class Sight:
    """What a detector can see, and what it cannot."""

    sees: str
    misses: str


SIGHTS = {
    "gold": Sight(
        "a real loss of quality, whatever its cause, once labels tell it: the only test of the promise",
        "anything without labels, and anything sooner than about 2 ln(1/alpha) q/(gap - eps)² audited rows, where q is "
        "the share of rows on which the tiers' qualities differ (375 at gap .06, eps .02, q .1, alpha .05)",
    ),
    "agreement": Sight(
        "kept answers that differ from the strong ones more often than on the calibration rows, without any label",
        "whether a different answer is a worse one: it is agreement, an upper bound of the loss, and not the promise; "
        "and errors that both tiers make",
    ),
    "escalation": Sight(
        "cost: more or fewer rows go to the strong tier than on the calibration rows",
        "quality: a tier that answers worse at the same confidence changes nothing here",
    ),
    "confidences": Sight(
        "other input than the calibration rows, as far as it moves the confidences (ADWIN)",
        "a loss of quality at unchanged confidences, and whether a shift does any harm",
    ),
}


class Report(BaseModel):
    """What an audit came to, as it is stored and shown; `untested` means that no label has told anything yet."""

    model_config = ConfigDict(frozen=True)
    verdict: State
    alarms: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    share: float = 0.0
    alpha: float = ALPHA
    kind: Kind = "absolute"
    eps: float = 0.0
    gap: float | None = None
    gap_interval: tuple[float, float] | None = None
    gap_rows: int = 0
    log_e: float = 0.0
    detector: float = 0.0
    differing: float | None = None
    differing_rows: int = 0
    differing_bound: float | None = None
    escalated: float | None = None
    escalated_band: tuple[float, float] | None = None
    drifts: int | None = None


def report(
    terms: Terms, found: Watched, *, counts: dict[str, int], share: float, drifts: int | None, cut: int = 0
) -> Report:
    """The verdict on the promise, and advice from what cannot judge it."""
    alarms, advice = _alarms(terms, found), _advice(terms, found, drifts)
    if cut:
        advice = [f"the budget left out {cut:,} rows by their places: a share of {share:.3g} was audited", *advice]
    tested = found.agreement.n if terms.kind == "agreement" else found.gold.n
    gold = found.gold
    return Report(
        verdict="alarm" if alarms else "quiet" if tested else "untested" if counts.get("audited") else "nothing",
        alarms=tuple(alarms),
        advice=tuple(advice),
        counts={**counts, "cut": cut},
        share=share,
        alpha=terms.alpha,
        kind=terms.kind,
        eps=terms.eps,
        gap=gold.mean,
        gap_interval=interval(gold, terms.gold) if gold.n else None,
        gap_rows=gold.n,
        log_e=gold.peak,
        detector=gold.detector_peak,
        differing=found.agreement.mean,
        differing_rows=found.agreement.n,
        differing_bound=None if terms.agreement.bound >= 1 else terms.agreement.bound,
        escalated=found.escalation.count / found.escalation.n if found.escalation.n else None,
        escalated_band=terms.band,
        drifts=drifts,
    )


def _alarms(terms: Terms, found: Watched) -> list[str]:
    promise, game = (found.agreement, terms.agreement) if terms.kind == "agreement" else (found.gold, terms.gold)
    what = {
        "absolute": f"the loss of quality is more than the {terms.eps:g} promised",
        "relative": f"quality is less than {1 - terms.eps:g} of the strong tier's, which was promised",
        "agreement": f"more than the promised share {terms.eps:g} of answers differs from the strong tier's",
    }[terms.kind]
    low, high = interval(promise, game)
    seen = f"mean {promise.mean or 0:.3f} [{low:.3f}, {high:.3f}], at most {game.bound:g} allowed"
    said: list[str] = []
    if promise.crossed is not None:
        chance = f"a false alarm at any time has a chance of at most {terms.alpha:g}"
        said.append(f"e-process after {promise.crossed} audited rows: {what} ({seen}; {chance})")
    if promise.detector_crossed is not None:
        rarely = f"a false one comes once in {DETECTOR_ALARM:,.0f} audited rows or less often"
        said.append(f"e-detector after {promise.detector_crossed} audited rows: {what} ({seen}; {rarely})")
    return said


def _advice(terms: Terms, found: Watched, drifts: int | None) -> list[str]:
    said: list[str] = []
    if terms.kind != "agreement" and not found.gold.n:
        said.append("the promise is not tested: no audited row has a label (`headrace labels import`)")
    differs = found.agreement
    if terms.kind != "agreement" and terms.differing is not None and (differs.crossed or differs.detector_crossed):
        said.append(
            f"kept answers differ from the strong ones on {differs.mean or 0:.3f} of the rows, more than the "
            f"{terms.differing:.3f} of the calibration rows: import labels, they alone can tell a loss"
        )
    if terms.band is not None and found.escalation.crossed is not None:
        rate, (low, high) = found.escalation.count / found.escalation.n, terms.band
        said.append(f"cost alarm: {rate:.1%} of the rows escalate, expected {low:.1%} to {high:.1%}; not about quality")
    if drifts:
        said.append("re-audit advised: the confidences are not those of the calibration rows any more (ADWIN)")
    return said


def void_report(reasons: Sequence[str], alarms: Sequence[str]) -> Report:
    """The report on a bundle whose certificate does not hold any more: there is no promise left to test."""
    return Report(verdict="void", alarms=tuple(alarms), advice=tuple(f"already void: {reason}" for reason in reasons))


def uncertified_report() -> Report:
    """The report on a bundle that promises nothing."""
    return Report(verdict="nothing", advice=("not certified: all rows go to the strong tier, so nothing can be lost",))


def lines(found: Report) -> list[str]:
    """A report as sentences: the verdict, the figures, and what each detector sees and does not see."""
    said = [_VERDICTS[found.verdict], *found.alarms, *found.advice]
    if found.counts:
        counts = ", ".join(f"{count:,} {name}" for name, count in found.counts.items())
        said.append(f"rows: {counts}; a share of {found.share:.3g} of all rows, by hash")
    if found.gap is not None and found.gap_interval is not None:
        low, high = found.gap_interval
        bound = 0.0 if found.kind == "relative" else found.eps
        said.append(
            f"gold: mean loss {found.gap:.4f} [{low:.4f}, {high:.4f}] over {found.gap_rows:,} rows, {bound:g} allowed; "
            f"log e-value {found.log_e:.2f} at its highest, e-detector {found.detector:,.1f}"
        )
    if found.differing is not None:
        bound = (
            "nothing to compare it with" if found.differing_bound is None else f"expected {found.differing_bound:.4f}"
        )
        rows = f"{found.differing_rows:,} rows"
        said.append(f"agreement, not correctness: {found.differing:.4f} kept and different, of {rows}; {bound}")
    if found.escalated is not None and found.escalated_band is not None:
        low, high = found.escalated_band
        said.append(
            f"escalation, a matter of cost: {found.escalated:.1%} of the rows, expected {low:.1%} to {high:.1%}"
        )
    if found.drifts is not None:
        said.append(f"confidences: {found.drifts} changes since the calibration rows (ADWIN)")
    return said


def sights() -> list[str]:
    """What each detector sees and does not see."""
    return [f"{name} sees {sight.sees}; it does not see {sight.misses}" for name, sight in SIGHTS.items()]


def metrics(found: Report) -> dict[str, float]:
    """The figures of a report by name, as numbers that a tracking store can plot."""
    low, high = found.gap_interval or (None, None)
    values = {
        "audit_gap": found.gap,
        "audit_gap_low": low,
        "audit_gap_high": high,
        "audit_gap_rows": found.gap_rows,
        "audit_log_e": found.log_e,
        "audit_detector": found.detector,
        "audit_differing": found.differing,
        "audit_escalated": found.escalated,
        "audit_drifts": found.drifts,
        "audit_alarm": found.verdict == "alarm",
    }
    return {name: float(value) for name, value in values.items() if value is not None}


_VERDICTS: dict[State, str] = {
    "alarm": "ALARM: the promise does not hold any more; the certificate is void and every row goes to the strong tier",
    "quiet": "quiet: nothing speaks against the promise",
    "untested": "untested: the promise cannot be tested without labels",
    "nothing": "nothing to audit",
    "void": "void: there is no promise left to test",
}
