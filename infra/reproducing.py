"""Reproduce: some of a run's requests to the live models again, past the ledger, and how far the answers agree."""

import asyncio
import heapq
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from domain.bundles import Bundle
from domain.canonical import share
from domain.confidences import LabelPrior
from domain.costs import usd
from domain.errors import ModelUnavailable
from domain.ledgers import Attempt, Stage
from domain.reproductions import Again, Agreement, agreement, beside
from domain.requests import Request, Usage
from domain.workloads import Tier, TierName, Workload
from infra.db.session import transaction
from infra.db.store import bundles, calls, runs
from infra.db.store import replays as store
from infra.db.store.runs import RunRecord
from infra.llm.engines import base_urls
from infra.llm.gateway import Gateway
from infra.llm.metering import read_meters
from infra.llm.replies import Reply
from infra.replaying import NotReplayable
from infra.settings import Settings
from infra.workloads import LoadedWorkload

SAVE_EVERY = 16


@dataclass(frozen=True, slots=True)
class TierReproduction:
    """What came of one tier: `asked` requests, those without a new answer, and the agreement of the others."""

    asked: int
    unanswered: int
    why: str | None
    agreement: Agreement
    usage: Usage
    usd: float


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of a reproduction, which is a run of its own; `skipped` answers have no completion in the ledger."""

    run_id: str
    of: RunRecord
    sample: int
    seed: int
    rows: int
    skipped: int
    tiers: dict[TierName, TierReproduction]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One tier's part of the sample: record key and request with its recorded completion."""

    name: TierName
    tier: Tier
    prior: LabelPrior
    calls: list[tuple[str, Request]]
    recorded: dict[str, store.StoredCompletion]


def sample_keys(run_id: str, sample: int, seed: int) -> list[str]:
    """Rows of a run by hash of key and seed: the same seed chooses the same ones, wherever it is asked."""
    with transaction() as db:
        keys = store.answered_keys(db, run_id)
        return heapq.nsmallest(sample, keys, key=lambda key: share(key, salt=f"headrace-reproduce-{seed}"))


def reproduce(run_id: str, folder: Path, *, sample: int, seed: int, settings: Settings) -> Reproduction:
    """Ask the live models again; the calls are attempts of a run of kind `reproduce` and cost what calls cost.

    Raises NotFound, NotReplayable when the run answered no row, and ModelUnavailable when no answer came at all.
    """
    with transaction() as db:
        run = runs.load_run(db, run_id)
        bundle = bundles.load_bundle(db, run.bundle_hash) if run.bundle_hash else None
    keys = sample_keys(run.id, sample, seed)
    if bundle is None or not keys:
        raise NotReplayable(f"the run {run.id[:8]} has answered no row that could be asked again.")
    loaded = LoadedWorkload(Workload.model_validate(run.spec), folder)
    parts, skipped = _parts(run, loaded, bundle, keys)
    own_id = _open(run, parts, settings)
    state = "failed"
    try:
        tiers, why = asyncio.run(_ask(own_id, parts, loaded, settings))
        state = "completed" if any(t.asked > t.unanswered for t in tiers.values()) else "failed"
        summary = {name.value: asdict(tier) for name, tier in tiers.items()}
        with transaction() as db:
            runs.add_summary(db, own_id, {"reproduced": run.id, "sample": sample, "seed": seed, "tiers": summary})
    finally:
        _close(own_id, state)
    if state == "failed":
        raise ModelUnavailable(f"no model answered: {why}")
    notes = [note for part in parts if (note := _other_weights(part, settings))]
    return Reproduction(own_id, run, sample, seed, len(keys), skipped, tiers, notes)


def _parts(run: RunRecord, loaded: LoadedWorkload, bundle: Bundle, keys: Sequence[str]) -> tuple[list[_Asked], int]:
    """What each tier is asked, and how many answers have no request to repeat."""
    with transaction() as db:
        given = store.load_answers(db, run.id, keys)
        known = store.load_completions(db, {answer.request_hash for answer in given.values()})
    parts: list[_Asked] = []
    for name in TierName:
        tier = loaded.workload.tiers[name] if run.kind == "optimize" else bundle[name].tier
        found = [
            (key, stored.request)
            for key in keys
            if (answer := given.get((name, key))) is not None
            and (stored := known.get(answer.request_hash)) is not None
            and stored.request is not None
        ]
        parts.append(_Asked(name, tier, LabelPrior(bundle[name].prior), found, known))
    parts = [part for part in parts if part.calls]
    return parts, len(given) - sum(len(part.calls) for part in parts)


def _open(run: RunRecord, parts: Sequence[_Asked], settings: Settings) -> str:
    """Begin a run of its own: what a reproduction spends is none of the reproduced run's calls."""
    own_id = str(uuid.uuid4())
    meters = read_meters(url for part in parts for url in base_urls(part.tier, settings))
    with transaction() as db:
        runs.open_run(
            db,
            own_id,
            kind="reproduce",
            workload=run.workload,
            workload_hash=run.workload_hash,
            spec=run.spec,
            meters={url: asdict(meter) for url, meter in meters.items()},
        )
    return own_id


def _close(own_id: str, state: str) -> None:
    with transaction() as db:
        before = runs.load_run(db, own_id).meters_before
    meters = {url: asdict(meter) for url, meter in read_meters(before).items()}
    with transaction() as db:
        runs.close_run(db, own_id, state=state, meters=meters)


async def _ask(
    own_id: str, parts: Sequence[_Asked], loaded: LoadedWorkload, settings: Settings
) -> tuple[dict[TierName, TierReproduction], str | None]:
    """Both tiers at once, each through its own gateway."""
    done = await asyncio.gather(*(_ask_tier(own_id, part, loaded, settings) for part in parts))
    tiers = {part.name: tier for part, tier in zip(parts, done, strict=True)}
    return tiers, next((tier.why for tier in done if tier.why), None)


async def _ask_tier(own_id: str, part: _Asked, loaded: LoadedWorkload, settings: Settings) -> TierReproduction:
    key = settings.model_api_key.get_secret_value() if settings.model_api_key else None
    gateway = Gateway(
        base_urls(part.tier, settings),
        api_key=key,
        in_flight=settings.in_flight,
        deadline_s=settings.request_deadline_s,
    )
    pairs: list[Again] = []
    attempts: list[Attempt] = []
    unsaved: list[Attempt] = []
    why: str | None = None

    async with gateway:

        async def send(record_key: str, request: Request) -> tuple[str, Reply]:
            return record_key, await gateway.send(request)

        sending = [asyncio.create_task(send(*call)) for call in part.calls]
        try:
            for finished in asyncio.as_completed(sending):
                record_key, reply = await finished
                unsaved += _attempts(part, record_key, reply)
                if reply.completion is None:
                    why = why or (reply.error.message if reply.error else "no answer")
                else:
                    recorded = part.recorded[reply.request.hash].completion
                    pairs.append(beside(recorded, reply.completion, loaded.schema, part.prior))
                if len(unsaved) >= SAVE_EVERY:
                    await asyncio.to_thread(_save, own_id, unsaved)
                    attempts, unsaved = [*attempts, *unsaved], []
        finally:
            for task in sending:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.to_thread(_save, own_id, unsaved)
    return _sum(part, pairs, [*attempts, *unsaved], why)


def _sum(part: _Asked, pairs: Sequence[Again], attempts: Sequence[Attempt], why: str | None) -> TierReproduction:
    used = [attempt.usage for attempt in attempts]
    return TierReproduction(
        asked=len(part.calls),
        unanswered=len(part.calls) - len(pairs),
        why=why,
        agreement=agreement(pairs),
        usage=Usage(sum(u.prompt for u in used), sum(u.completion for u in used), sum(u.cached for u in used)),
        usd=sum(attempt.usd for attempt in attempts),
    )


def _attempts(part: _Asked, record_key: str, reply: Reply) -> list[Attempt]:
    return [
        Attempt(
            attempt_id=str(uuid.uuid4()),
            stage=Stage.REPRODUCE,
            tier=part.name,
            record_key=record_key,
            request_hash=reply.request.hash,
            number=number,
            cached=False,
            usage=once.usage,
            seconds=once.seconds,
            usd=usd(once.usage, part.tier.usd_per_million),
            worker=once.worker,
            outcome=once.outcome,
            detail=once.detail,
        )
        for number, once in enumerate(reply.tries, start=1)
    ]


def _save(own_id: str, attempts: Sequence[Attempt]) -> None:
    with transaction() as db:
        calls.save_attempts(db, own_id, attempts)


def _other_weights(part: _Asked, settings: Settings) -> str | None:
    """What is to be said when the embedded server has other weights than those that answered."""
    today: Any = settings.engine_revisions.get(part.tier.model)
    then = part.calls[0][1].revision
    if part.tier.base_urls or today == then:
        return None
    return f"{part.name.value} is served with other weights now: {today}, then {then}"
