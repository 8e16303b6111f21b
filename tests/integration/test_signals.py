"""Signals on the row path: read from an answer, or from further answers that are asked once, charged, and replayed."""

import json
import math
import uuid
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from sqlalchemy import select, update

from domain.confidences import LabelPrior, decide
from domain.datasets import Record, Split
from domain.errors import BudgetReached, ModelUnavailable, Place
from domain.ledgers import OutcomeClass, Stage
from domain.prompts import baseline
from domain.replays import Cause, Kind
from domain.requests import Completion, Request
from domain.schemas import OutputSchema
from domain.signals import FREE, PAID, sample_frames
from domain.workloads import EngineName, Prices, Router, SignalName, Tier, TierName
from infra import rows
from infra.db.session import transaction
from infra.db.store import answers, calls, runs
from infra.db.store.answers import StoredAnswer
from infra.db.store.datasets import StoredRecord
from infra.db.tables import AnswerRow, AttemptRow, CompletionRow
from infra.exchange import export_run
from infra.llm.scripted import Fault, Rule, Script, ScriptedServer
from infra.progress import Progress
from infra.replaying import replay
from infra.rows import Rows
from infra.settings import Settings, load_settings
from infra.showing import show_run
from infra.snapshots import take_snapshot
from infra.stack import Stack
from infra.tiers import Deployment
from tests.integration import scripted_workloads
from tests.integration.begun_runs import open_run
from tests.integration.recorded_runs import lines
from tests.integration.scripted_workloads import RULES, Ran, Written, diagnosed, spent

pytestmark = pytest.mark.timeout(900)
S = SignalName
SAMPLES = 4
ROUTER = Router(signals=(S.MARGIN, *PAID), samples=SAMPLES, temperature=1.5)


class Triage(BaseModel):
    """What a row is about, and how soon: the two words stand for a closed field that decides nothing."""

    model_config = ConfigDict(extra="forbid")
    topic: Literal["card", "loan"]
    urgent: Literal["yes", "no"]
    note: str


SCHEMA = OutputSchema.of(Triage, decisive="topic", place=Place("here"))
PRIOR = LabelPrior({"card": 0.4, "loan": 0.6})
SCRIPT = Script(
    rules=(Rule(pattern="card", label="card"), Rule(pattern="loan", label="loan"), Rule(pattern="4", label="false")),
    row_pattern=r"Text: (Row \d+: my \w+)",
    sharpness=2,
)


@pytest.fixture
def settings(ledger: str) -> Settings:
    """A small window."""
    return load_settings().model_copy(
        update={"in_flight": 8, "window": 16, "request_deadline_s": 20.0, "outage_patience_s": 2.0}
    )


@contextmanager
def serving(*faults: Fault, port: int = 0) -> Generator[ScriptedServer]:
    with ScriptedServer(SCRIPT.model_copy(update={"faults": faults}), port=port) as server:
        yield server


def deployment(server: ScriptedServer, *signals: SignalName, **more: Any) -> Deployment:
    """A tier whose revision is new, so that the ledger knows none of its answers."""
    tier = Tier(
        model="scripted",
        base_urls=(server.base_url,),
        revision=uuid.uuid4().hex,
        max_tokens=64,
        usd_per_million=Prices(input=100, output=200),
        **more,
    )
    prompt = baseline("Name the topic.", input_fields=("text",), schema=SCHEMA)
    return Deployment(TierName.CHEAP, tier, prompt, PRIOR, SCHEMA, 1, signals=signals, router=ROUTER)


def rows_of(count: int) -> list[StoredRecord]:
    records = [
        Record(
            f"r{n}", {"text": f"Row {n}: my {('card', 'loan')[n % 2]}"}, {"topic": "card"}, Split.TEST, Place("f", n)
        )
        for n in range(count)
    ]
    return [StoredRecord(record.key, n, record) for n, record in enumerate(records)]


def chunk(run_id: str, given: Sequence[StoredRecord]) -> Rows:
    version, _ = take_snapshot(run_id, [row.record for row in given], uri="x", splits=[Split.TEST], max_rows=None)
    return Rows(run_id, version, 0, len(given))


async def answer(
    run_id: str, how: Deployment, given: Sequence[StoredRecord], settings: Settings
) -> dict[str, StoredAnswer]:
    """Both halves of the row path; what the ledger then holds, by row."""
    taken, progress = chunk(run_id, given), Progress(run_id, "rows", len(given))
    await rows.generate(how, taken, settings=settings, progress=progress)
    await rows.validate(how, taken, settings=settings, progress=progress)
    return stored(run_id)


def stored(run_id: str) -> dict[str, StoredAnswer]:
    with transaction() as db:
        return answers.load_answers(db, run_id, TierName.CHEAP)


def attempts(run_id: str, *, cached: bool = False) -> list[AttemptRow]:
    with transaction() as db:
        return list(db.scalars(select(AttemptRow).where(AttemptRow.run_id == run_id, AttemptRow.cached.is_(cached))))


def stages(run_id: str, *, cached: bool = False) -> Counter[str]:
    return Counter(attempt.stage for attempt in attempts(run_id, cached=cached))


def completions(*requests: Request) -> list[Completion]:
    with transaction() as db:
        known = calls.load_completions(db, {request.hash for request in requests})
    return [known[request.hash] for request in requests]


# ---- what an answer says itself


async def test_the_free_signals_of_a_row_are_those_of_its_completion(run_id: str, settings: Settings) -> None:
    with serving() as server:
        how, given = deployment(server, *FREE), rows_of(6)
        found = await answer(run_id, how, given, settings)
        assert server.calls.requests == len(given), "they cost no call"
    for row in given:
        (said,) = completions(how.request(row))
        labels = {field: {k: math.exp(v) for k, v in odds.items()} for field, odds in said.label_logprobs.items()}
        topic = json.loads(said.text)["topic"]
        assert said.readings is not None
        assert said.readings.keys() == {"topic", "urgent", "note"}
        decision = decide(said.label_logprobs["topic"], PRIOR)
        signals = found[row.key].signals
        assert signals is not None
        assert found[row.key].confidence == signals["margin"] == decision.confidence
        assert found[row.key].output == {**json.loads(said.text), "topic": decision.label}
        assert found[row.key].signal_usd == {}
        fields = [
            labels["topic"][decision.label],
            max(labels["urgent"].values()),
            math.exp(said.readings["note"].logprob),
        ]
        assert signals["joint"] == pytest.approx(math.prod(fields))
        assert signals["worst-field"] == pytest.approx(min(fields))
        assert signals["probability"] == pytest.approx((1 + decision.confidence) / 2)
        assert signals["allowed-mass"] == pytest.approx(1.0)
        assert ("min-token" in signals) == (decision.label == topic)


async def test_a_tier_that_is_asked_for_none_stores_none(run_id: str, settings: Settings) -> None:
    with serving() as server:
        found = await answer(run_id, deployment(server), rows_of(3), settings)
    assert {(a.signals, a.signal_usd) for a in found.values()} == {(None, None)}
    assert all(a.confidence is not None for a in found.values())


# ---- what further answers say


async def test_further_answers_are_asked_stored_and_charged_to_their_row(run_id: str, settings: Settings) -> None:
    with serving(Fault(kind="invalid_json", first=1, match="Row 3:")) as server:
        how, given = deployment(server, *FREE, *PAID), rows_of(8)
        found = await answer(run_id, how, given, settings)
        assert stages(run_id) == {"generate": 8, "reask": 1, "signal": 8 * (SAMPLES + 1)}
        assert server.calls.requests == len(attempts(run_id))
        used = sum(a.prompt_tokens + a.completion_tokens for a in attempts(run_id))
        assert used == server.calls.prompt_tokens + server.calls.completion_tokens
    assert sum(a.tokens for a in found.values()) == used
    assert sum(a.usd for a in found.values()) == pytest.approx(sum(a.usd for a in attempts(run_id)))
    paid = sum(a.usd for a in attempts(run_id) if a.stage == Stage.SIGNAL)
    assert sum(usd for a in found.values() for usd in (a.signal_usd or {}).values()) == pytest.approx(paid)
    shares: set[float] = set()
    for row in given:
        mine, signals = found[row.key], found[row.key].signals or {}
        assert set(mine.signal_usd or {}) == set(PAID)
        base = how.request(row)
        samples = completions(*(Request(frame, base.last) for frame in sample_frames(base.frame, ROUTER)))
        agreeing = [json.loads(sample.text)["topic"] == (mine.output or {})["topic"] for sample in samples]
        assert signals["self-consistency"] == sum(agreeing) / SAMPLES
        shares.add(signals["self-consistency"])
        asked = {a.request_hash for a in attempts(run_id) if (a.record_key, a.stage) == (row.key, "signal")}
        with transaction() as db:
            (said,) = calls.load_completions(db, asked - {sample.request_hash for sample in samples}).values()
        assert set(said.label_logprobs) == {"right"}
        assert signals["p-true"] == pytest.approx(math.exp(said.label_logprobs["right"]["true"]))
        assert signals.keys() <= {*FREE, *PAID}
    assert len(shares) > 1, "the samples differ"


async def test_a_second_time_nothing_is_asked_and_the_signals_are_the_same(run_id: str, settings: Settings) -> None:
    with serving() as server:
        how, given = deployment(server, *FREE, *PAID), rows_of(5)
        first = await answer(run_id, how, given, settings)
        sent = server.calls.requests
        for again in (run_id, open_run()):
            assert await answer(again, how, given, settings) == first
        # Another deployment takes over no answers, and finds all that it needs in the ledger.
        other = open_run()
        fewer = await answer(other, replace(how, signals=(S.SELF_CONSISTENCY,)), given, settings)
        assert server.calls.requests == sent
    assert stages(other, cached=True) == {"generate": 5, "signal": 5 * SAMPLES}
    for key, one in fewer.items():
        assert one.signals == {"self-consistency": (first[key].signals or {})["self-consistency"]}
        assert one.usd < first[key].usd


async def test_answers_are_taken_over_only_from_runs_that_asked_for_the_same_signals(
    run_id: str, settings: Settings
) -> None:
    with serving() as server:
        how = deployment(server)
        prints = {
            replace(how, signals=signals, router=router).fingerprint
            for signals in ((), (S.MARGIN,), (S.P_TRUE,), (S.SELF_CONSISTENCY,))
            for router in (ROUTER, ROUTER.model_copy(update={"samples": 3}), Router(temperature=0.3))
        }
        # The router's samples and temperature count for self-consistency alone.
        assert len(prints) == 3 + 3
        given = rows_of(3)
        await answer(run_id, how, given, settings)
        found = await answer(open_run(), replace(how, signals=(S.MARGIN,)), given, settings)
        assert [a.signals for a in found.values()] == [{"margin": a.confidence} for a in found.values()]


async def test_a_refused_call_leaves_its_signal_out_and_the_row_stands(run_id: str, settings: Settings) -> None:
    # The first call of a row is its own; then come the samples, and the question about the answer.
    refuse = Fault(kind="status", status=400, match="Row 1:", calls=(2, 3, 4, 5))
    with serving(refuse) as server:
        how, given = deployment(server, S.MARGIN, *PAID), rows_of(3)
        found = await answer(run_id, how, given, settings)
        assert server.calls.requests == 3 * (2 + SAMPLES)
    one, other = found[given[1].key], found[given[0].key]
    assert one.failed is None
    assert set(one.signals or {}) < set(other.signals or {}) == {"margin", *PAID}
    assert set(one.signals or {}) >= {"margin"}
    mine = [a for a in attempts(run_id) if a.record_key == given[1].key]
    assert sum(a.outcome == OutcomeClass.REFUSED for a in mine) == 4
    assert one.usd == pytest.approx(sum(a.usd for a in mine))


async def test_a_sample_that_breaks_the_schema_disagrees(run_id: str, settings: Settings) -> None:
    spoil = Fault(kind="off_schema", match="Row 0:", calls=tuple(range(2, 9)))
    with serving(spoil) as server:
        how, given = deployment(server, S.SELF_CONSISTENCY), rows_of(2)
        found = await answer(run_id, how, given, settings)
        assert server.calls.requests == 2 * (1 + SAMPLES), "it is not asked again"
    assert (found[given[0].key].signals or {}) == {"self-consistency": 0.0}
    assert found[given[0].key].failed is None


async def test_nothing_further_is_asked_about_a_row_without_a_valid_answer(run_id: str, settings: Settings) -> None:
    with serving(Fault(kind="off_schema", match="Row 0:"), Fault(kind="status", status=400, match="Row 1:")) as server:
        given = rows_of(3)
        found = await answer(run_id, deployment(server, S.MARGIN, *PAID), given, settings)
    assert Counter(a.record_key for a in attempts(run_id) if a.stage == "signal") == {given[2].key: SAMPLES + 1}
    assert [found[row.key].failed is None for row in given] == [False, False, True]
    assert [found[row.key].signals for row in given[:2]] == [{}, {}]


async def test_a_run_that_stops_among_its_signals_goes_on_where_it_was(run_id: str, settings: Settings) -> None:
    given = rows_of(12)
    with serving(Fault(kind="die", after_calls=30)) as server:
        how = deployment(server, S.MARGIN, *PAID)
        with pytest.raises(ModelUnavailable):
            await answer(run_id, how, given, settings)
    before = {a.request_hash for a in attempts(run_id) if a.outcome == OutcomeClass.ANSWERED}
    assert 12 < len(before) < 12 * (2 + SAMPLES)
    assert stored(run_id) == {}, "an answer is stored with its signals, not before"
    with serving(port=server.port) as revived:
        found = await answer(run_id, how, given, settings)
        assert revived.calls.requests == 12 * (2 + SAMPLES) - len(before)
    assert all((a.signals or {}).keys() == {"margin", *PAID} for a in found.values())


async def test_a_budget_ends_the_asking_before_it_is_crossed(settings: Settings) -> None:
    run_id = open_run()
    with serving() as server:
        how, given = deployment(server, S.MARGIN, *PAID), rows_of(6)
        with transaction() as db:
            runs.change_run(db, run_id, max_tokens=1500)
        with pytest.raises(BudgetReached):
            await answer(run_id, how, given, settings)
        used = server.calls.prompt_tokens + server.calls.completion_tokens
        assert 6 < server.calls.requests < 6 * (2 + SAMPLES)
        assert used <= 1500
        with transaction() as db:
            runs.change_run(db, run_id, max_tokens=None)
        found = await answer(run_id, how, given, settings)
        assert server.calls.requests == 6 * (2 + SAMPLES)
    assert len(found) == 6


async def test_an_engine_for_batches_gets_re_asks_together_and_further_answers_together(
    run_id: str, settings: Settings, tmp_path: Path
) -> None:
    with serving(Fault(kind="invalid_json", first=1, match="Row [1-4]:")) as server:
        how, given = deployment(server, S.MARGIN, *PAID, engine=EngineName.BATCH), rows_of(8)
        home = settings.model_copy(update={"home": tmp_path})
        found = await answer(run_id, how, given, home)
        assert server.calls.requests == 8 + 4 + 8 * (SAMPLES + 1)
        assert len(server.model.batches.cards) == 3, "the rows, what has to be asked again, and the signals"
    assert all((a.signals or {}).keys() == {"margin", *PAID} for a in found.values())


# ---- a whole run

TWO_FIELDS = scripted_workloads.SCHEMA.replace(
    'topic: Literal["card", "loan", "cash"]', 'topic: Literal["card", "loan", "cash"]\n    urgent: bool\n    note: str'
)


@pytest.fixture(scope="module")
def workload(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """Several fields, and a router that declares what costs calls."""
    small = Script(model="small", rules=RULES, noise=0.25, sharpness=4, seed=1, row_pattern=r"Text: ([^\n]+)")
    large = Script(model="large", rules=RULES, noise=0.05, seed=2, row_pattern=r"Text: ([^\n]+)")
    with ScriptedServer(small) as cheap, ScriptedServer(large) as strong:
        written = scripted_workloads.write(
            tmp_path_factory.mktemp("workloads") / "signalled",
            name="signalled",
            cheap=cheap,
            strong=strong,
            rows=60,
            router={"signals": ["margin", "self-consistency", "p-true"], "samples": 3},
        )
        (written.folder / "schema.py").write_text(TWO_FIELDS)
        workload = json.loads((written.folder / "workload.yaml").read_text())
        for tier in workload["tiers"].values():
            tier["max_tokens"] = 64
        (written.folder / "workload.yaml").write_text(json.dumps(workload))
        yield written


@pytest.fixture(scope="module")
def optimized(workload: Written) -> Ran:
    """A completed `optimize-workload`."""
    return workload.run("optimize-workload")


def judged(run_id: str, tier: TierName) -> list[AnswerRow]:
    with transaction() as db:
        return list(db.scalars(select(AnswerRow).where(AnswerRow.run_id == run_id, AnswerRow.tier == tier)))


def test_an_optimisation_stores_the_cheap_tiers_signals_and_its_books_balance(
    workload: Written, optimized: Ran
) -> None:
    found = diagnosed(optimized.id)
    assert found.healthy
    assert [tokens.holds for tokens in found.tokens] == [True, True]
    cheap, strong = (judged(optimized.id, tier) for tier in TierName)
    assert len(cheap) == len(strong) > 30
    assert {row.signals is None for row in strong} == {True}
    asked = {name.value for name in (*FREE, *PAID)}
    for row in cheap:
        assert row.signals is not None
        assert asked - {"min-token"} <= row.signals.keys() <= asked
        assert all(0 <= value <= 1 for value in row.signals.values())
        assert row.signal_usd is not None
        assert 0 < sum(row.signal_usd.values()) < row.usd
    for name in asked - {"allowed-mass"}:
        assert len({(row.signals or {}).get(name) for row in cheap}) > 2, name
    (part,) = [part for part in spent(optimized.id) if (part.stage, part.worker) == ("signal", workload.cheap.base_url)]
    assert part.calls == 4 * len(cheap)
    assert part.usd == pytest.approx(sum(usd for row in cheap for usd in (row.signal_usd or {}).values()))


def test_the_spending_that_people_are_shown_names_the_signals(optimized: Ran) -> None:
    written = StringIO()
    show_run(Console(file=written, width=200), optimized.id, quarantined=False, as_json=False)
    (line,) = [line for line in written.getvalue().splitlines() if "signal" in line and "cheap" in line]
    assert f"{4 * len(judged(optimized.id, TierName.CHEAP)):,}" in line


def test_the_run_is_replayed_from_the_ledger_to_the_byte(workload: Written, optimized: Ran) -> None:
    found = replay(optimized.id, workload.folder)
    assert found.seen.identical, found.seen.first
    assert found.unproven == 0


def test_doing_it_again_makes_no_call(workload: Written, optimized: Ran) -> None:
    again = workload.run("optimize-workload")
    assert (again.cheap.requests, again.strong.requests) == (0, 0)
    assert {row.record_key: row.signals for row in judged(again.id, TierName.CHEAP)} == {
        row.record_key: row.signals for row in judged(optimized.id, TierName.CHEAP)
    }
    assert replay(again.id, workload.folder).seen.identical


def test_what_an_exported_run_is_made_of_has_its_signals_calls(
    workload: Written, optimized: Ran, tmp_path: Path
) -> None:
    again = workload.run("optimize-workload")
    needed = {a.request_hash for a in attempts(optimized.id) if a.stage == "signal"}
    for ran in (optimized, again):
        export_run(ran.id, tmp_path / "run.zip")
        there = lines(tmp_path / "run.zip", "completions")
        assert needed <= {row["request_hash"] for row in there}
        assert all(row["readings"] is not None for row in there)


@pytest.mark.parametrize("what", ["a sample", "a reading", "a signal", "its price"])
def test_whatever_is_changed_about_a_signal_is_found_out(workload: Written, optimized: Ran, what: str) -> None:
    row = judged(optimized.id, TierName.CHEAP)[0]
    mine = [a for a in attempts(optimized.id) if (a.stage, a.record_key) == ("signal", row.record_key)]
    signals, prices = dict(row.signals or {}), dict(row.signal_usd or {})
    answer = [AnswerRow.run_id == row.run_id, AnswerRow.tier == row.tier, AnswerRow.record_key == row.record_key]
    table, where, change = {
        "a sample": (CompletionRow, [CompletionRow.request_hash.in_([a.request_hash for a in mine])], {"text": "no"}),
        "a reading": (CompletionRow, [CompletionRow.request_hash == row.request_hash], {"readings": {}}),
        "a signal": (AnswerRow, answer, {"signals": {**signals, "p-true": 0.123}}),
        "its price": (AnswerRow, answer, {"signal_usd": {**prices, "p-true": 1.0}}),
    }[what]
    columns: Any = [getattr(table, name) for name in change]
    keys: Any = list(table.__table__.primary_key)
    with transaction() as db:
        before = db.execute(select(*keys, *columns).where(*where)).all()
        db.execute(update(table).where(*where).values(**change))
    try:
        first = replay(optimized.id, workload.folder).seen.first
    finally:
        with transaction() as db:
            for kept in before:
                same = [key == value for key, value in zip(keys, kept, strict=False)]
                db.execute(update(table).where(*same).values(dict(zip(change, kept[len(keys) :], strict=True))))
    assert first
    assert (first.kind, first.cause) == (Kind.OUTPUTS if what == "its price" else Kind.CONFIDENCES, Cause.LEDGER)
    assert replay(optimized.id, workload.folder).seen.identical
