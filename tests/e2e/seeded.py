"""A ledger of the size that much use leaves behind, written by the ledger's own writers in the likeness of a real run.

Specification, bundle, summary and links are those of a run that was really made; its rows are drawn.
"""

import random
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat

from sqlalchemy import case, func, insert, literal, select
from sqlalchemy.orm import Session

from domain.canonical import digest
from domain.datasets import Record, Split
from domain.errors import Place
from domain.ledgers import Attempt, OutcomeClass, Stage
from domain.outcomes import Outcome, Unanswered
from domain.requests import Usage
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import answers, bundles, calls, runs, statistics
from infra.db.store.answers import StoredAnswer, StoredScore
from infra.db.tables import AnswerRow, OutcomeRow, PromptVersionRow, QuarantinedRow, RunRowRow
from infra.snapshots import take_snapshot

BATCH = 50_000
ESCALATED, CACHED, REASKED, LOST = 0.3, 0.2, 0.02, 0.001
"""Shares of the rows: sent to the strong tier too, answered by the ledger, asked again, quarantined."""
TIERS = list(TierName)
TOPICS = ("card", "loan", "cash")
SEARCHES = 40
"""Prompts that were searched for each tier, before the one in use."""


@dataclass(frozen=True, slots=True)
class _Row:
    """What is drawn for one row."""

    record: Record
    said: dict[TierName, str]
    sure: float
    cached: bool
    reasked: bool
    lost: bool
    seconds: float
    tokens: int


def seed(like: str, rows: int, *, workload: str | None = None, seed: int = 1) -> str:
    """Write a run of so many rows in the likeness of a completed one (its id is `like`); returns the new run's id.

    A run with gold labels gets both tiers' answers and scores to every row, one without escalates a share of them.
    """
    run_id = str(uuid.uuid4())
    with transaction() as db:
        model = runs.load_run(db, like)
        name = workload or model.workload
        runs.open_run(
            db, run_id, kind=model.kind, workload=name, workload_hash=model.workload_hash, spec=model.spec, meters={}
        )
    labelled = model.kind != "route"
    split = Split.CALIBRATION if labelled else Split.INCOMING

    def drawn(keys: Iterable[str]) -> Iterator[_Row]:
        draw = random.Random(seed)  # noqa: S311
        return (_draw(n, key, split, draw, labelled=labelled) for n, key in enumerate(keys))

    keys: list[str] = []
    version, _ = take_snapshot(
        run_id, _noted(drawn(repeat("", rows)), keys), uri=f"seeded-{seed}-{rows}", splits=[split], max_rows=None
    )
    again = drawn(keys)
    while some := list(islice(again, BATCH)):
        _write(run_id, version, some, labelled=labelled)
    with transaction() as db:
        bundle_hash = _deploy(db, like, run_id, name) if name != model.workload else model.bundle_hash
        runs.add_summary(db, run_id, model.summary)
        runs.add_links(db, run_id, model.links)
        runs.change_run(db, run_id, bundle_hash=bundle_hash)
        for tier in TierName:
            runs.save_progress(db, run_id, f"generate {tier}", done=rows, total=rows, unit="rows")
        runs.close_run(db, run_id, state="completed", meters={})
        statistics.refresh(db)
    return run_id


def again(like: str, *, flipped: str) -> str:
    """Write a second run on the rows of one; those whose key this pattern finds end with another label. Its id.

    It is copied inside the database: one run of that size is written by the ledger's own writers, this is its twin.
    """
    run_id = str(uuid.uuid4())
    other = case((OutcomeRow.output["topic"].astext == "card", "loan"), else_="card")
    said = case(
        (OutcomeRow.record_key.regexp_match(flipped), func.jsonb_build_object("topic", other)), else_=OutcomeRow.output
    )
    with transaction() as db:
        model = runs.load_run(db, like)
        given = {"workload": model.workload, "workload_hash": model.workload_hash, "spec": model.spec}
        runs.open_run(db, run_id, kind=model.kind, meters={}, **given)
        runs.change_run(db, run_id, dataset_version=model.dataset_version, bundle_hash=model.bundle_hash)
        for table in (RunRowRow, AnswerRow, OutcomeRow, QuarantinedRow):
            names = [column.name for column in table.__table__.columns]
            taken = {name: getattr(table, name) for name in names} | {"run_id": literal(run_id)}
            if table is OutcomeRow:
                taken["output"] = said
            query = select(*taken.values()).where(table.run_id == like)
            db.execute(insert(table).from_select(names, query))
        runs.add_summary(db, run_id, model.summary)
        runs.close_run(db, run_id, state="completed", meters={})
        statistics.refresh(db)
    return run_id


def _deploy(db: Session, like: str, run_id: str, workload: str) -> str | None:
    """Give a workload the bundle and the prompts of another's run, and older prompts with what their search cost."""
    model = runs.load_run(db, like)
    if model.bundle_hash is None:
        return None
    bundle = bundles.load_bundle(db, model.bundle_hash).model_copy(update={"workload": workload})
    bundles.save_bundle(db, bundle, run_id=run_id if model.kind == "optimize" else None)
    bundles.set_alias(db, workload, "champion", bundle.hash)
    if model.kind != "optimize":
        return bundle.hash
    for row in db.scalars(select(PromptVersionRow).where(PromptVersionRow.workload == model.workload)):
        compiled = bundles.find_compiled(db, row.compile_key)
        for number in range(SEARCHES if compiled else 0):
            asked = f"{compiled.prompt.instructions} ({number})" if number else compiled.prompt.instructions
            made = replace(
                compiled,
                compile_key=digest([workload, row.compile_key, number]),
                prompt=compiled.prompt.model_copy(update={"instructions": asked}),
            )
            bundles.save_compiled(db, made, workload=workload, tier=row.tier)
            calls.save_attempts(db, run_id, [_search(row.tier, n) for n in range(10)])
    return bundle.hash


def _search(tier: str, n: int) -> Attempt:
    """A call of a search for a prompt."""
    id_ = str(uuid.uuid4())
    return Attempt(
        attempt_id=id_,
        stage=Stage.COMPILE,
        tier=tier,
        record_key=digest(id_),
        request_hash=digest(id_),
        number=1,
        cached=n % 5 == 0,
        usage=Usage(300, 30, 200),
        seconds=0.5,
        usd=0.0001,
        worker="http://127.0.0.1:8000/v1",
        outcome=OutcomeClass.ANSWERED,
    )


def _noted(rows: Iterable[_Row], keys: list[str]) -> Iterator[Record]:
    """The records of rows; their keys, which take longest to compute, are written down."""
    for row in rows:
        keys.append(row.record.key)
        yield row.record


def _draw(n: int, key: str, split: Split, draw: random.Random, *, labelled: bool) -> _Row:
    truth = TOPICS[n % 3]
    sure = draw.random()
    said = {
        TierName.CHEAP: truth if draw.random() < 0.5 + sure / 2 else draw.choice(TOPICS),
        TierName.STRONG: truth if draw.random() < 0.93 else draw.choice(TOPICS),
    }
    record = Record(
        record_id=f"s{n}",
        inputs={"text": f"Row {n} is about a {truth}, and is {'so ' * draw.randrange(20)}long."},
        gold={"topic": truth} if labelled else None,
        split=split,
        place=Place("seeded.jsonl", n + 1),
        key=key,
    )
    chances = [draw.random() for _ in range(3)]
    return _Row(
        record,
        said,
        sure,
        cached=chances[0] < CACHED,
        reasked=chances[1] < REASKED,
        lost=chances[2] < LOST and not labelled,
        seconds=draw.lognormvariate(-1, 0.6),
        tokens=60 + draw.randrange(80),
    )


def _asked(row: _Row, *, labelled: bool) -> tuple[TierName, ...]:
    return tuple(TierName) if labelled or row.sure < ESCALATED or row.lost else (TierName.CHEAP,)


def _price(row: _Row, tier: TierName) -> float:
    return row.tokens * (5e-8 if tier is TierName.CHEAP else 5e-7)


def _write(run_id: str, version: str, some: list[_Row], *, labelled: bool) -> None:
    asked = [(row, tier) for row in some for tier in _asked(row, labelled=labelled)]
    with transaction() as db:
        calls.save_attempts(db, run_id, (attempt for row, tier in asked for attempt in _attempts(row, tier)))
        answers.save_answers(db, run_id, (_answer(row, tier) for row, tier in asked))
        answers.save_settled(db, run_id, version, [_settled(row) for row in some])
        if labelled:
            answers.save_scores(
                db,
                run_id,
                (
                    StoredScore(row.record.key, tier, "exact_match", float(row.said[tier] == row.record.gold["topic"]))
                    for row, tier in asked
                    if row.record.gold
                ),
            )


def _attempts(row: _Row, tier: TierName) -> Iterator[Attempt]:
    for number in range(2 if row.reasked else 1):
        yield Attempt(
            attempt_id=f"{row.record.key[:30]}{TIERS.index(tier)}{number}",
            stage=Stage.REASK if number else Stage.GENERATE,
            tier=tier,
            record_key=row.record.key,
            request_hash=row.record.key,
            number=number,
            cached=row.cached,
            usage=Usage(row.tokens - 10, 10, row.tokens // 2),
            seconds=0.0 if row.cached else row.seconds,
            usd=_price(row, tier),
            worker=f"http://127.0.0.1:{8000 + row.tokens % 4}/v1",
            outcome=OutcomeClass.TIMEOUT if row.lost else OutcomeClass.ANSWERED,
        )


def _answer(row: _Row, tier: TierName) -> StoredAnswer:
    return StoredAnswer(
        record_key=row.record.key,
        tier=tier,
        request_hash=row.record.key,
        output=None if row.lost else {"topic": row.said[tier]},
        confidence=row.sure if tier is TierName.CHEAP else 0.9 + row.sure / 10,
        reasks=int(row.reasked),
        tokens=row.tokens,
        usd=_price(row, tier),
        failed="no answer in time" if row.lost else None,
        signals={"probability": row.sure, "margin": row.sure**2},
    )


def _settled(row: _Row) -> Outcome | Unanswered:
    if row.lost:
        return Unanswered(row.record.key, "timeout: no answer within 120 s")
    escalated = row.sure < ESCALATED
    tier = TierName.STRONG if escalated else TierName.CHEAP
    usd = sum(_price(row, each) for each in (TierName if escalated else [TierName.CHEAP]))
    return Outcome(row.record.key, tier, {"topic": row.said[tier]}, row.sure, escalated, usd)
