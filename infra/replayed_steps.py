"""What followed from the rows' answers, made again: scores, certificate, figures, bundle, gate and outcomes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, cast

from pydantic import JsonValue

from domain.bundles import Bundle, BundledTier, Lineage, gate, keeps, rendering
from domain.cascades import Cascade, bundle_of, decide_cascade, recheck_cascade
from domain.certificates import Use
from domain.compiles import baseline_of
from domain.datasets import Split
from domain.figures import Row
from domain.outcomes import Outcome, TierAnswer, Unanswered, settle_row, skipped
from domain.replays import Cause, Kind
from domain.requests import Completion
from domain.summaries import tuning_summary
from domain.thresholds import tuning_share
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import datasets, tunings
from infra.db.store import replays as store
from infra.db.store.answers import StoredAnswer, StoredScore
from infra.db.store.datasets import StoredRecord
from infra.db.store.replays import StoredCompletion
from infra.pairs import fit_pairs, pair
from infra.replayed_prompts import Replayed
from infra.replayed_rows import RowReplay, Setting
from infra.routings import routings_of
from infra.scoring import JUDGES_METRIC, judge_rows, score_row
from infra.tiers import Deployment

SETTLED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows with everything recorded about them; the keys of those whose content is not what it was."""

    rows: list[StoredRecord]
    broken: set[str]
    answers: dict[tuple[str, str], StoredAnswer]
    known: dict[str, StoredCompletion]
    scores: dict[tuple[str, str, str], StoredScore]
    settled: dict[str, Outcome | str]


class Steps(Protocol):
    """The steps of one kind of run."""

    async def take(self, page: Page) -> None:
        """Make the decisions on some rows again."""
        ...

    async def finish(self) -> None:
        """Make those again that need all rows."""
        ...


@dataclass(slots=True)
class RouteSteps:
    """A batch: the cheap answer is kept or the strong one taken, row by row."""

    setting: Setting
    tiers: dict[TierName, Replayed]
    threshold: float | None
    settled: int = 0
    tally: dict[str, int] = field(default_factory=lambda: {"answered": 0, "kept_on_cheap": 0, "escalated": 0})

    async def take(self, page: Page) -> None:
        """Answers and outcomes of some rows."""
        for row in page.rows:
            cause = Cause.DATA if row.key in page.broken else self.setting.cause
            decided = await self._settle(row, page)
            recorded = page.settled.get(row.key)
            if decided is None and not isinstance(recorded, Outcome):
                self.setting.unproven += 1  # set aside before it was answered
            else:
                _compare_outcome(self.setting, row.key, recorded, decided, cause)
            self.settled += 1
            if isinstance(decided, Outcome):
                self.tally["answered"] += 1
                self.tally["kept_on_cheap"] += decided.tier is TierName.CHEAP
                self.tally["escalated"] += decided.escalated

    async def _settle(self, row: StoredRecord, page: Page) -> Outcome | Unanswered | None:
        """What becomes of a row; None when a tier that had to be asked never was."""
        cheap = await self._cheap(row, page) if self.threshold is not None else None
        if self.threshold is not None and cheap is None:
            return None
        kept = cheap is not None and keeps(cheap.confidence, self.threshold)
        strong = None if kept else await self._answer(TierName.STRONG, row, page)
        if not kept and strong is None:
            return None
        return settle_row(row.key, cheap, strong.as_tier_answer() if strong else None, self.threshold)

    async def _cheap(self, row: StoredRecord, page: Page) -> TierAnswer | None:
        deployment = self.tiers[TierName.CHEAP].deployment
        if row.key not in page.broken and deployment.skips(deployment.request(row)):
            return skipped()
        answer = await self._answer(TierName.CHEAP, row, page)
        return answer.as_tier_answer() if answer else None

    async def _answer(self, tier: TierName, row: StoredRecord, page: Page) -> StoredAnswer | None:
        return await _answer(self.setting, self.tiers[tier], row, page)

    async def finish(self) -> None:
        """The number of settled rows, and the counts of the run's summary."""
        _compare_settled(self.setting, self.settled)
        summary = self.setting.run.summary
        counts: dict[str, JsonValue] = {**self.tally, "threshold": self.threshold}
        counts = {name: value for name, value in counts.items() if name in summary}
        recorded = {name: summary[name] for name in counts}
        self.setting.seen.same(Kind.SUMMARY, "the batch's counts", recorded, counts, cause=_later(self.setting))


@dataclass(slots=True)
class OptimizeSteps:
    """A bundle in the making: both tiers answer and are scored, then the threshold is certified."""

    setting: Setting
    tiers: dict[TierName, Replayed]
    bundle: Bundle
    pairs: list[Row] = field(default_factory=list[Row])
    judged: dict[TierName, list[tuple[StoredRecord, StoredAnswer]]] = field(
        default_factory=lambda: {tier: [] for tier in TierName}
    )
    opinions: dict[tuple[str, str, str], StoredScore] = field(default_factory=dict[tuple[str, str, str], StoredScore])

    async def take(self, page: Page) -> None:
        """Answers and scores of some rows."""
        for row in page.rows:
            sides: dict[TierName, tuple[TierAnswer, float]] = {}
            for tier in TierName:
                sides[tier] = await self._side(tier, row, page)
            self.pairs.append(pair(row, self.tiers[TierName.CHEAP].deployment.prompt, sides))
        self.opinions |= {key: score for key, score in page.scores.items() if key[2] == JUDGES_METRIC}

    async def _side(self, tier: TierName, row: StoredRecord, page: Page) -> tuple[TierAnswer, float]:
        what = f"{tier.value}, {row.record.record_id} ({row.record.place})"
        answer = await _answer(self.setting, self.tiers[tier], row, page)
        if answer is None:
            self.setting.seen.same(Kind.OUTPUTS, what, "no answer", "every judged row has one", cause=Cause.LEDGER)
            return TierAnswer(None, None, tokens=0, usd=0.0, failed="it is gone"), 0.0
        score = score_row(self.setting.loaded, row, answer)
        recorded = page.scores.get((tier, row.key, score.metric))
        cause = Cause.DATA if row.key in page.broken else self.setting.cause
        self.setting.seen.same(Kind.SCORES, what, _score(recorded), _score(score), cause=cause)
        asked = self.setting.loaded.workload.judge
        if asked.enabled and answer.output is not None and len(self.judged[tier]) < asked.rows:
            self.judged[tier].append((row, answer))
        return answer.as_tier_answer(), score.value

    async def finish(self) -> None:
        """The judge's opinions, the certificate, the bundle, the gate and every outcome."""
        await self._judge()
        cascade = self._decide()
        figures, recorded = tuning_summary(cascade), self.setting.run.summary
        said: JsonValue = {name: recorded.get(name) for name in figures}
        self.setting.seen.same(Kind.FIGURES, "the figures", said, figures, cause=_later(self.setting))
        if "kept" not in recorded:  # else the champion was looked at again, and nothing was made
            self._compare_bundle(cascade)
            self._compare_gate(cascade)
        cause = _later(self.setting)
        for first in range(0, len(cascade.settled), SETTLED_AT_ONCE):
            some = cascade.settled[first : first + SETTLED_AT_ONCE]
            with transaction() as db:
                stored = store.load_settled(db, self.setting.run.id, [decided.key for decided in some])
            for decided in some:
                _compare_outcome(self.setting, decided.key, stored.get(decided.key), decided, cause)
        _compare_settled(self.setting, len(cascade.settled))

    def _compare_gate(self, cascade: Cascade) -> None:
        # What the servers said at that moment is on record and nowhere else.
        void, target = self.setting.run.summary.get("void", []), self.setting.loaded.workload.target
        verdict = gate(cascade.tuned.verdict, cascade.figures, cascade.loss, target, void=void)
        with transaction() as db:
            promotion = store.load_promotion(db, self.setting.run.id)
        recorded: JsonValue = [promotion[0], cast(JsonValue, promotion[1])] if promotion else None
        now: JsonValue = [verdict.passed, list(verdict.reasons)]
        self.setting.seen.same(Kind.GATE, "the gate", recorded, now, cause=_later(self.setting))

    def _decide(self) -> Cascade:
        loaded, run = self.setting.loaded, self.setting.run
        if "kept" in run.summary:
            how, kept = self.bundle.routing, self.bundle.threshold or 0.0
            target, decisive = loaded.workload.target, loaded.workload.decisive
            return recheck_cascade(self.pairs, target, decisive=decisive, routing=how, threshold=kept)
        with transaction() as db:
            train = datasets.load_records(db, run.dataset_version or "", Split.TRAIN)
            number = tunings.load_tuning(db, run.id) or 1
        deployed = {name: tier.deployment for name, tier in self.tiers.items()}
        workload, fit = loaded.workload, fit_pairs(loaded, train, deployed, self._known)
        routings = routings_of(workload, fit, unseen=[row.key for row in self.pairs])
        use = Use(number, tuning_share(workload.target.spend, number))
        return decide_cascade(self.pairs, workload.target, decisive=workload.decisive, routings=routings.ways, use=use)

    def _known(self, hashes: set[str]) -> dict[str, Completion]:
        return {key: found.completion for key, found in self.setting.recording.completions(hashes).items()}

    async def _judge(self) -> None:
        """Every opinion that is on record or comes out today."""
        replayed: list[StoredScore] = []
        for tier, chosen in self.judged.items():
            rows, given = [row for row, _ in chosen], {row.key: answer for row, answer in chosen}
            if chosen:
                replayed += await judge_rows(
                    self.setting.loaded, tier, rows, given, ask=self.setting.recording.ask, concurrency=1
                )
        today = {(score.tier, score.record_key, score.metric): score for score in replayed}
        for key in sorted({*today, *self.opinions}):
            recorded, now = _score(self.opinions.get(key)), _score(today.get(key))
            self.setting.seen.same(
                Kind.SCORES, f"judge of {key[0]}, {key[1][:12]}", recorded, now, cause=_later(self.setting)
            )

    def _compare_bundle(self, cascade: Cascade) -> None:
        run, seen, cause = self.setting.run, self.setting.seen, _later(self.setting)
        verdict = cast(JsonValue, cascade.tuned.verdict.model_dump(mode="json"))
        recorded = cast(JsonValue, self.bundle.certificate.model_dump(mode="json"))
        seen.same(Kind.CERTIFICATE, "the certificate", recorded, verdict, cause=cause)
        deployed = {name: tier.deployment for name, tier in self.tiers.items()}
        parts = {name: _bundled(deployment, self.bundle[name]) for name, deployment in deployed.items()}
        loaded, known = self.setting.loaded, self.bundle.lineage.baseline is not None
        lineage = Lineage(
            workload_hash=run.workload_hash,
            dataset_version=run.dataset_version or "",
            calibration_rows=sum(row.split is Split.CALIBRATION for row in self.pairs),
            baseline=baseline_of(loaded.workload, loaded.schema).hash if known else None,
        )
        made = bundle_of(cascade, loaded.workload, loaded.schema, parts, lineage)
        seen.same(Kind.BUNDLE, "the bundle's hash", run.bundle_hash, made.hash, cause=cause)


def _bundled(deployed: Deployment, recorded: BundledTier) -> BundledTier:
    """A tier as the bundle must have it; what older bundles do not say is not asked of them."""
    return BundledTier(
        tier=deployed.tier,
        prompt=deployed.prompt,
        prior=dict(deployed.prior.means),
        rendered=rendering(deployed.prompt) if recorded.rendered is not None else None,
        served=recorded.served,
    )


async def _answer(setting: Setting, tier: Replayed, row: StoredRecord, page: Page) -> StoredAnswer | None:
    recorded = page.answers.get((tier.deployment.name, row.key))
    if recorded is None:
        return None
    cause = Cause.DATA if row.key in page.broken else tier.cause
    return await RowReplay(setting).answer(tier.deployment, row, recorded, page.known, cause)


def _compare_outcome(
    setting: Setting, key: str, recorded: Outcome | str | None, decided: Outcome | Unanswered | None, cause: Cause
) -> None:
    setting.seen.same(Kind.OUTCOMES, f"row {key[:12]}", _outcome(recorded), _outcome(decided), cause=cause)


def _compare_settled(setting: Setting, replayed: int) -> None:
    with transaction() as db:
        recorded = store.count_settled(db, setting.run.id)
    setting.seen.same(Kind.OUTCOMES, "the number of settled rows", recorded, replayed, cause=_later(setting))


def _outcome(decided: Outcome | Unanswered | str | None) -> JsonValue:
    if isinstance(decided, Outcome):
        return cast(JsonValue, asdict(decided))
    return (
        f"quarantined: {decided.reason}" if isinstance(decided, Unanswered) else decided and f"quarantined: {decided}"
    )


def _score(score: StoredScore | None) -> JsonValue:
    return [score.value, score.label, score.explanation] if score else None


def _later(setting: Setting) -> Cause:
    """What a decision on all rows is put down to: the cause of the first divergence below it, if there is one."""
    return setting.seen.first.cause if setting.seen.first else setting.cause


def load_page(setting: Setting, rows: Sequence[StoredRecord], broken: set[str]) -> Page:
    """Everything on record about some rows."""
    keys, run_id = [row.key for row in rows], setting.run.id
    with transaction() as db:
        answers = store.load_answers(db, run_id, keys)
        scores = store.load_scores(db, run_id, keys)
        settled = store.load_settled(db, run_id, keys)
    known = setting.recording.completions({answer.request_hash for answer in answers.values()})
    return Page(list(rows), broken, answers, known, scores, settled)
