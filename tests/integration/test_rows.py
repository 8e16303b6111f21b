"""The row path: real HTTP to a scripted model server, real Postgres, and the server's own count as the judge."""

import asyncio
import itertools
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy import text as text_of_sql

from domain.confidences import LabelPrior
from domain.datasets import Record, Split
from domain.errors import ModelError, ModelUnavailable, Place, RequestRefused
from domain.ledgers import OutcomeClass, Stage
from domain.outcomes import Outcome, settle_row
from domain.prompts import baseline
from domain.requests import Usage
from domain.schemas import OutputSchema
from domain.workloads import Prices, Tier, TierName
from infra import rows
from infra.db.session import database_url, engine_for, transaction
from infra.db.store import answers, calls, runs
from infra.db.store.answers import StoredAnswer
from infra.db.store.datasets import StoredRecord
from infra.db.tables import AttemptRow, CompletionRow
from infra.llm.blocking import blocking_ask
from infra.llm.engines import base_urls
from infra.llm.ledgered import Call, open_ledgered
from infra.llm.scripted import Fault, Rule, Script, ScriptedServer
from infra.progress import Progress
from infra.rows import Rows, Tally
from infra.settings import Settings, load_settings
from infra.snapshots import take_snapshot
from infra.tiers import Deployment
from tests.integration.begun_runs import open_run

pytestmark = pytest.mark.timeout(120)
WINDOW = 8


class Topic(BaseModel):
    """What a row is about."""

    model_config = ConfigDict(extra="forbid")
    topic: Literal["card", "loan"]


SCHEMA = OutputSchema.of(Topic, decisive="topic", place=Place("here"))
RULES = (Rule(pattern="card", label="card"), Rule(pattern="loan", label="loan"))
EVEN = LabelPrior({"card": 0.5, "loan": 0.5})


@pytest.fixture
def settings(ledger: str) -> Settings:
    """A small window, so that much is left when a server dies."""
    return load_settings().model_copy(
        update={"in_flight": WINDOW, "window": 2 * WINDOW, "request_deadline_s": 20.0, "outage_patience_s": 2.0}
    )


@contextmanager
def serving(*faults: Fault, port: int = 0) -> Generator[ScriptedServer]:
    with ScriptedServer(Script(rules=RULES, faults=faults), port=port) as server:
        yield server


def deployment(*servers: ScriptedServer, max_reasks: int = 1) -> Deployment:
    """A tier on these servers; its revision is new, so that the ledger knows none of its answers."""
    tier = Tier(
        model="scripted",
        base_urls=tuple(server.base_url for server in servers),
        revision=uuid.uuid4().hex,
        max_tokens=24,
        usd_per_million=Prices(input=100, output=200),
    )
    prompt = baseline("Name the topic.", input_fields=("text",), schema=SCHEMA)
    return Deployment(TierName.CHEAP, tier, prompt, EVEN, SCHEMA, max_reasks)


def text(n: int) -> str:
    return f"Row {n}: my {('card', 'loan')[n % 2]}."


def some_rows(*texts: str) -> list[StoredRecord]:
    records = [
        Record(f"r{n}", {"text": said}, {"topic": "card"}, Split.TEST, Place("rows.jsonl", n + 1))
        for n, said in enumerate(texts)
    ]
    return [StoredRecord(record.key, n, record) for n, record in enumerate(records)]


def rows_of(count: int) -> list[StoredRecord]:
    return some_rows(*(text(n) for n in range(count)))


def chunk(run_id: str, given: Sequence[StoredRecord]) -> Rows:
    """The rows as the run's own; a run keeps those that it was first given."""
    splits = sorted({row.record.split for row in given})
    version, _ = take_snapshot(run_id, [row.record for row in given], uri="x", splits=splits, max_rows=None)
    return Rows(run_id, version, 0, len(given))


async def generate(run_id: str, how: Deployment, given: Sequence[StoredRecord], settings: Settings) -> Tally:
    progress = Progress(run_id, "generate", len(given))
    return await rows.generate(how, chunk(run_id, given), settings=settings, progress=progress)


async def validate(run_id: str, how: Deployment, given: Sequence[StoredRecord], settings: Settings) -> Tally:
    progress = Progress(run_id, "validate", len(given))
    return await rows.validate(how, chunk(run_id, given), settings=settings, progress=progress)


async def answer(
    run_id: str, how: Deployment, given: Sequence[StoredRecord], settings: Settings
) -> dict[str, StoredAnswer]:
    """Both halves of the row path; what the ledger then holds, by row."""
    await generate(run_id, how, given, settings)
    await validate(run_id, how, given, settings)
    with transaction() as db:
        return answers.load_answers(db, run_id, how.name)


def attempts(run_id: str, *, cached: bool = False) -> list[AttemptRow]:
    with transaction() as db:
        query = select(AttemptRow).where(AttemptRow.run_id == run_id, AttemptRow.cached == cached)
        return list(db.scalars(query.order_by(AttemptRow.at, AttemptRow.number)))


def used(tries: Sequence[AttemptRow]) -> Usage:
    return Usage(
        sum(t.prompt_tokens for t in tries),
        sum(t.completion_tokens for t in tries),
        sum(t.cached_tokens for t in tries),
    )


def counted(*servers: ScriptedServer) -> Usage:
    return Usage(
        sum(s.calls.prompt_tokens for s in servers),
        sum(s.calls.completion_tokens for s in servers),
        sum(s.calls.cached_tokens for s in servers),
    )


def stored(given: Sequence[StoredRecord], how: Deployment) -> set[str]:
    """Keys of the rows whose completion the ledger has."""
    hashes = {how.request(row).hash: row.key for row in given}
    with transaction() as db:
        found = db.scalars(select(CompletionRow.request_hash).where(CompletionRow.request_hash.in_(hashes)))
        return {hashes[request_hash] for request_hash in found}


async def test_every_call_is_an_attempt_and_its_tokens_are_the_servers_own_count(
    run_id: str, settings: Settings
) -> None:
    spoiled = (
        Fault(kind="invalid_json", first=1, share=0.2),
        Fault(kind="off_schema", share=0.1),
        Fault(kind="truncated", share=0.1),
        Fault(kind="status", status=500, first=1, share=0.2),
    )
    with serving(*spoiled) as one, serving() as other:
        how, given = deployment(one, other), rows_of(200)
        found = await answer(run_id, how, given, settings)
        tries = attempts(run_id)
        assert set(one.calls.faults) == {"invalid_json", "off_schema", "truncated", "status"}
        assert len(tries) == one.calls.requests + other.calls.requests
        assert used(tries) == counted(one, other)
        for server in (one, other):
            mine = [entry for entry in tries if entry.worker == server.base_url]
            assert (used(mine), len(mine)) == (counted(server), server.calls.requests)
    assert found.keys() == {row.key for row in given}
    assert sum(a.tokens for a in found.values()) == used(tries).prompt + used(tries).completion
    assert sum(t.usd for t in tries) == pytest.approx((used(tries).prompt * 100 + used(tries).completion * 200) / 1e6)
    assert sum(a.usd for a in found.values()) == pytest.approx(sum(t.usd for t in tries))


async def test_a_second_time_nothing_is_sent_and_the_answers_are_the_same(run_id: str, settings: Settings) -> None:
    with serving(Fault(kind="invalid_json", first=1, share=0.3)) as server:
        how, given = deployment(server), rows_of(30)
        first = await answer(run_id, how, given, settings)
        sent = server.calls.requests
        assert sent > len(given)
        for again in (run_id, open_run()):
            assert await answer(again, how, given, settings) == first
        assert server.calls.requests == sent
    spared = attempts(again, cached=True)
    assert (len(spared), attempts(again)) == (len(given), [])
    assert sum(entry.usd for entry in spared) == pytest.approx(sum(answer.usd for answer in first.values()))
    with transaction() as db:
        (part,) = calls.spending(db, again)
    assert (part.calls, part.usd, part.usage) == (0, 0.0, Usage())
    assert part.spared_usd == pytest.approx(sum(entry.usd for entry in spared))


async def test_a_known_row_is_looked_up_once_however_often_its_task_is_repeated(
    run_id: str, settings: Settings
) -> None:
    with serving() as server:
        how, given = deployment(server), rows_of(10)
        await generate(open_run(), how, given, settings)
        tallies = [await generate(run_id, how, given, settings) for _ in range(3)]
        assert [(tally.calls, tally.reused, tally.usd) for tally in tallies] == [(0, 10, 0.0), (0, 0, 0.0), (0, 0, 0.0)]
        other, tilted = open_run(), replace(how, prior=LabelPrior({"card": 0.9, "loan": 0.1}))
        tally = await generate(other, tilted, given, settings)
        assert (tally.calls, tally.reused, tally.cached) == (0, 0, 10), "the requests are the same, what follows is not"
        assert server.calls.requests == 10
    assert len(attempts(run_id, cached=True)) == len(attempts(other, cached=True)) == 10


async def test_known_rows_are_priced_by_todays_prices(run_id: str, settings: Settings) -> None:
    with serving() as server:
        how, given = deployment(server), rows_of(4)
        before = await answer(run_id, how, given, settings)
        prices = Prices(input=200, output=400)
        dearer = replace(how, tier=how.tier.model_copy(update={"usd_per_million": prices}))
        after = await answer(open_run(), dearer, given, settings)
        assert server.calls.requests == 4
    assert {key: found.usd for key, found in after.items()} == {
        key: pytest.approx(2 * found.usd) for key, found in before.items()
    }


async def test_rows_that_say_the_same_are_asked_once_and_each_gets_the_answer(run_id: str, settings: Settings) -> None:
    with serving() as server:
        given = some_rows("my card", "my loan", "my card", "my card")
        found = await answer(run_id, deployment(server), given, settings)
        assert server.calls.requests == 2
    assert [found[row.key].output for row in given] == [{"topic": t} for t in ("card", "loan", "card", "card")]


@pytest.mark.parametrize("wrong", range(6))
async def test_a_row_that_is_wrong_k_times_is_done_with_k_more_calls_or_fails_with_all_of_them_kept(
    run_id: str, settings: Settings, wrong: int
) -> None:
    reasks = 3
    faults = [Fault(kind="off_schema", match="Row 4:", first=wrong)] if wrong else []
    with serving(*faults) as server:
        given = rows_of(6)
        found = await answer(run_id, deployment(server, max_reasks=reasks), given, settings)
        report = server.calls
    bad = given[4].key
    mine = [entry for entry in attempts(run_id) if entry.record_key == bad]
    assert len(mine) == min(wrong, reasks) + 1
    assert report.requests == len(given) - 1 + len(mine)
    assert used(attempts(run_id)) == Usage(report.prompt_tokens, report.completion_tokens, report.cached_tokens)
    assert [entry.stage for entry in mine] == ["generate", *["reask"] * (len(mine) - 1)]
    assert found[bad].reasks == len(mine) - 1
    assert found[bad].tokens == used(mine).prompt + used(mine).completion
    if wrong <= reasks:
        assert (found[bad].output, found[bad].failed) == ({"topic": "card"}, None)
    else:
        assert found[bad].output is None
        assert (found[bad].failed or "").startswith("schema: ")
    assert all(found[row.key].failed is None for row in given if row.key != bad)


@pytest.mark.parametrize("kind", ["truncated", "whitespace"])
async def test_a_truncated_answer_is_a_class_of_its_own_and_is_asked_again_once(
    run_id: str, settings: Settings, kind: Literal["truncated", "whitespace"]
) -> None:
    with serving(Fault(kind=kind, match="Row [02]:")) as server:
        given = rows_of(5)
        how = deployment(server, max_reasks=3)
        found = await answer(run_id, how, given, settings)
        assert server.calls.requests == 3 + 2 * 2
    for row in (given[0], given[2]):
        mine = [entry for entry in attempts(run_id) if entry.record_key == row.key]
        assert [entry.outcome for entry in mine] == [OutcomeClass.TRUNCATED] * 2
        assert used(mine).completion <= 2 * how.tier.max_tokens
        assert found[row.key].output is None
        assert (found[row.key].failed or "").startswith("truncated: ")
    assert [found[row.key].failed for row in given if row not in (given[0], given[2])] == [None] * 3


async def test_a_pause_that_the_server_asks_for_is_kept_and_no_error_text_reaches_a_prompt(
    run_id: str, settings: Settings
) -> None:
    busy = (
        Fault(kind="status", status=429, retry_after="2", first=1, share=0.2),
        Fault(kind="status", status=500, first=1, share=0.1),
        Fault(kind="status", status=503, first=1, share=0.05),
    )
    with serving(*busy) as server:
        given = rows_of(100)
        found = await answer(run_id, deployment(server), given, settings)
        log, report = server.log, server.calls
    assert [a.failed for a in found.values()] == [None] * 100
    refused = {call.row for call in log if call.fault == "status"}
    assert len(refused) >= 20
    assert report.requests == len(given) + len(refused) <= 1.6 * len(given)
    by_row = {row: [call for call in log if call.row == row] for row in refused}
    asked_to_wait = {entry.record_key for entry in attempts(run_id) if "HTTP 429" in (entry.detail or "")}
    texts = {f"Text: {row.record.inputs['text']}" for row in given if row.key in asked_to_wait}
    assert len(texts) >= 10
    assert all(second.at - first.at >= 2 for row in texts for first, second in itertools.pairwise(by_row[row]))
    assert not [call for call in log if "scripted" in call.prompt or "HTTP" in call.prompt]
    assert used(attempts(run_id)) == Usage(report.prompt_tokens, report.completion_tokens, report.cached_tokens)


async def test_a_refused_row_is_quarantined_with_its_place_while_the_others_go_through(
    run_id: str, settings: Settings
) -> None:
    with serving(Fault(kind="status", status=400, match="poison")) as server:
        given = some_rows(*(text(n) for n in range(20)), "poison", "poison")
        found = await answer(run_id, deployment(server), given, settings)
        assert server.calls.requests == 21, "the same words are sent once, and a refusal is not tried again"
    assert found.keys() == {row.key for row in given}
    splits = {row.record.split for row in given}
    version, _ = take_snapshot(run_id, [row.record for row in given], uri="x", splits=[*splits], max_rows=None)
    with transaction() as db:
        settled = [settle_row(row.key, None, found[row.key].as_tier_answer(), None) for row in given]
        answers.save_settled(db, run_id, version, settled)
    with transaction() as db:
        quarantine = answers.load_quarantine(db, run_id)
        conserved = runs.conservation(db, run_id)
    assert sum(isinstance(entry, Outcome) for entry in settled) == 20
    assert [str(q.place) for q in quarantine] == ["rows.jsonl:21", "rows.jsonl:22"]
    assert all(q.reason.startswith("not answered: HTTP 400") for q in quarantine)
    assert str(conserved) == "22 records = 20 outcomes + 2 quarantined + 0 cancelled + 0 pending"


async def test_when_the_server_dies_all_it_answered_is_stored_and_the_next_try_sends_the_rest(
    run_id: str, settings: Settings
) -> None:
    given = rows_of(80)
    with serving(Fault(kind="die", after_calls=40)) as server:
        how = deployment(server)
        with pytest.raises(ModelUnavailable):
            await generate(run_id, how, given, settings)
        before = server.calls
    kept = stored(given, how)
    # The answers that were on their way when the connections broke are the server's word against ours.
    assert 40 - WINDOW <= len(kept) <= before.answered
    assert {entry.record_key for entry in attempts(run_id) if entry.outcome == OutcomeClass.ANSWERED} == kept
    gone = {OutcomeClass.LOST, OutcomeClass.UNAVAILABLE}
    assert {entry.outcome for entry in attempts(run_id)} - {OutcomeClass.ANSWERED} <= gone
    with serving(port=server.port) as revived:
        tally = await generate(run_id, how, given, settings)
        assert revived.calls.requests == len(given) - len(kept)
    assert (tally.calls, tally.cached) == (len(given) - len(kept), 0)
    assert stored(given, how) == {row.key for row in given}


async def test_a_tier_with_a_dead_server_goes_on_with_the_living_one(run_id: str, settings: Settings) -> None:
    with serving(Fault(kind="die", after_calls=10)) as mortal, serving() as other:
        given = rows_of(60)
        tally = await generate(run_id, deployment(mortal, other), given, settings)
        assert tally.calls == 60
        assert other.calls.answered >= 60 - mortal.calls.answered


async def test_an_abandoned_run_loses_no_more_than_a_window(run_id: str, settings: Settings) -> None:
    given = rows_of(60)
    with ScriptedServer(Script(rules=RULES, latency_s=0.05)) as server:
        how = deployment(server)
        task = asyncio.create_task(generate(run_id, how, given, settings))
        while server.calls.answered < 30:  # noqa: ASYNC110 - it counts in a thread of its own
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while server.calls.in_flight:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        sent = server.calls.requests
        tally = await generate(run_id, how, given, settings)
        assert server.calls.requests - sent == tally.calls
        assert sent - (len(given) - tally.calls) <= 2 * WINDOW


async def test_a_store_that_is_slow_holds_up_the_sending(run_id: str, settings: Settings) -> None:
    with serving() as server:
        how, given = deployment(server), rows_of(60)
        with engine_for(database_url()).begin() as holder:
            holder.execute(text_of_sql("lock table completions in exclusive mode"))
            task = asyncio.create_task(generate(run_id, how, given, settings))
            while server.calls.requests < 2 * WINDOW:  # noqa: ASYNC110 - it counts in a thread of its own
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            assert server.calls.requests == 2 * WINDOW
        assert (await task).calls == 60


async def test_no_more_calls_are_under_way_than_the_window_allows(run_id: str, settings: Settings) -> None:
    with ScriptedServer(Script(rules=RULES, latency_s=0.02)) as server:
        await generate(run_id, deployment(server), rows_of(50), settings)
        assert server.calls.max_in_flight == WINDOW


async def test_one_call_alone_raises_what_it_ended_with(run_id: str, settings: Settings) -> None:
    with serving(Fault(kind="status", status=400, match="poison")) as server:
        how = deployment(server)
        good, bad = some_rows("my card", "poison")
        async with open_ledgered(run_id, how.name, how.tier, settings) as ledgered:
            said = await ledgered.ask(Call(how.request(good), good.key), stage=Stage.JUDGE)
            assert said.text == '{"topic":"card"}'
            with pytest.raises(RequestRefused, match="scripted 400"):
                await ledgered.ask(Call(how.request(bad), bad.key), stage=Stage.JUDGE)


def test_libraries_with_threads_of_their_own_get_the_same_ledger(run_id: str, settings: Settings) -> None:
    with serving() as server:
        how, given = deployment(server), rows_of(5)
        for _ in range(2):
            with blocking_ask(run_id, how.name, how.tier, settings, stage=Stage.COMPILE) as ask:
                said = [ask(how.request(row), row.key).text for row in given]
            assert said == ['{"topic":"card"}', '{"topic":"loan"}'] * 2 + ['{"topic":"card"}']
        assert server.calls.requests == 5


def test_a_model_that_nobody_serves_names_what_to_do(settings: Settings) -> None:
    tier = Tier(model="unknown", usd_per_million=Prices(input=1, output=1))
    with pytest.raises(ModelError, match="headrace up"):
        base_urls(tier, settings)
    embedded = settings.model_copy(update={"engines": {"unknown": "http://127.0.0.1:1/v1"}})
    assert base_urls(tier, embedded) == ("http://127.0.0.1:1/v1",)


async def test_the_spending_of_a_run_is_the_sum_of_its_attempts(run_id: str, settings: Settings) -> None:
    with serving(Fault(kind="off_schema", first=1, match="Row 1:")) as server:
        await answer(run_id, deployment(server), rows_of(4), settings)
        with transaction() as db:
            spent = {(part.stage, part.tier): part for part in calls.spending(db, run_id)}
        assert {key: part.calls for key, part in spent.items()} == {("generate", "cheap"): 4, ("reask", "cheap"): 1}
        assert {part.worker for part in spent.values()} == {server.base_url}
        assert sum(part.usage.prompt for part in spent.values()) == server.calls.prompt_tokens
