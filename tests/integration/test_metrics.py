"""/metrics: what the ledger says, in Prometheus' words, for this machine and for who has the token."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select, text

from infra import credentials, metrics
from infra.db.session import database_url, engine_for, transaction
from infra.db.tables import AttemptRow, OutcomeRow, RunRow
from infra.exchange import import_runs
from infra.metrics import FRESH_S, MOST, LedgerCollector
from infra.settings import load_settings
from tests.integration.begun_runs import open_run
from tests.integration.receivers import Sender, receiving, write_triggers
from tests.integration.recorded_runs import FILE


@pytest.fixture(scope="module")
def url(ledger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import_runs(FILE)
    folder = tmp_path_factory.mktemp("receiver")
    with receiving(folder, write_triggers(folder, Sender())) as found:  # as it is served: it heeds no proxy's headers
        yield found.url


def scraped(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def collected(collector: LedgerCollector) -> dict[str, float]:
    """Metrics by name, added up over their labels."""
    found: dict[str, float] = {}
    for family in collector.collect():
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_it_says_what_the_ledger_says(url: str) -> None:
    answer = httpx.get(f"{url}/metrics", trust_env=False)
    said = scraped(answer.text)

    with transaction() as db:
        runs = db.execute(select(RunRow.kind, RunRow.state, func.count()).group_by(RunRow.kind, RunRow.state)).all()
        a = AttemptRow
        sums = select(func.count(), func.sum(a.usd), func.sum(a.prompt_tokens)).where(~a.cached)
        made, usd, tokens = db.execute(sums).one()
        rows = db.scalar(select(func.count()).select_from(OutcomeRow)) or 0
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert said["headrace_ledger_up", frozenset()] == 1
    assert {key: value for key, value in said.items() if key[0] == "headrace_runs"} == {
        ("headrace_runs", frozenset({("kind", kind), ("state", state)})): count for kind, state, count in runs
    }
    totals = {name: sum(value for key, value in said.items() if key[0] == name) for name, _ in said}
    assert totals["headrace_calls_total"] == made
    assert totals["headrace_cost_usd_total"] == pytest.approx(usd)
    assert totals["headrace_prompt_tokens_total"] == tokens
    answered = [v for k, v in said.items() if k[0] == "headrace_rows_total" and ("result", "quarantined") not in k[1]]
    assert sum(answered) == rows


def test_who_comes_from_elsewhere_needs_the_token(url: str) -> None:
    token = credentials.secret(load_settings(), "metrics-token")
    proxied = {"x-forwarded-for": "192.0.2.9"}
    for wrong in ({}, {"authorization": "Bearer admin"}, {"authorization": token}, {"authorization": "Bearer x"}):
        assert httpx.get(f"{url}/metrics", headers=proxied | wrong, trust_env=False).status_code == 401
    right = proxied | {"authorization": f"Bearer {token}"}
    assert httpx.get(f"{url}/metrics", headers=right, trust_env=False).status_code == 200


def test_it_is_no_part_of_the_document_that_senders_read(url: str) -> None:
    assert "/metrics" not in httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]


def test_the_ledger_is_read_now_and_then_and_ended_runs_once(ledger: str) -> None:
    now = [0.0]
    collector = LedgerCollector(clock=lambda: now[0])
    before = collected(collector)["headrace_runs"]
    run_id = open_run()
    now[0] = FRESH_S - 1
    assert collected(collector)["headrace_runs"] == before
    now[0] = FRESH_S + 1
    assert collected(collector)["headrace_runs"] == before + 1
    with transaction() as db:
        db.execute(text("DELETE FROM runs WHERE id = :run"), {"run": run_id})


def test_counters_do_not_fall_when_a_run_is_forgotten(ledger: str) -> None:
    now = [0.0]
    collector = LedgerCollector(clock=lambda: now[0])
    run_id = open_run()
    with transaction() as db:
        attempt = "INSERT INTO attempts (attempt_id, run_id, stage, tier, record_key, request_hash, number, cached, prompt_tokens, completion_tokens, cached_tokens, seconds, usd, worker, outcome) VALUES (gen_random_uuid(), :run, 'generate', 'cheap', 'k', 'h', 1, false, 7, 1, 0, 1, 1, 'w', 'answered')"  # noqa: E501
        db.execute(text(attempt), {"run": run_id})
        db.execute(
            text("INSERT INTO quarantined (run_id, record_key, stage, file, reason) VALUES (:run, 'k', 's', 'f', 'r')"),
            {"run": run_id},
        )
    before = collected(collector)
    with transaction() as db:
        for table in ("attempts", "quarantined"):
            db.execute(text(f"DELETE FROM {table} WHERE run_id = :run"), {"run": run_id})  # noqa: S608
        db.execute(text("DELETE FROM runs WHERE id = :run"), {"run": run_id})
    for now[0] in (FRESH_S + 1, 3 * FRESH_S):
        after = collected(collector)
        assert after["headrace_runs"] == before["headrace_runs"] - 1
        for name in ("headrace_calls_total", "headrace_prompt_tokens_total", "headrace_rows_total"):
            assert after[name] == before[name] > 0


def test_while_postgres_is_away_it_says_so_and_what_it_last_knew(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    collector = LedgerCollector(clock=lambda: now[0])
    before = collected(collector)
    monkeypatch.setenv("HEADRACE_DATABASE_URL", "postgresql+psycopg://headrace@127.0.0.1:9/headrace")
    now[0] = 2 * FRESH_S
    after = collected(collector)
    engine_for(database_url()).dispose()

    assert (before["headrace_ledger_up"], after["headrace_ledger_up"]) == (1, 0)
    assert after["headrace_runs"] == before["headrace_runs"] > 0


def test_labels_are_bounded() -> None:
    heads = [metrics.RunHead(f"r{n}", "route", f"w{n}", "completed", None, {}) for n in range(3 * MOST)]
    names = metrics._names(heads)  # pyright: ignore[reportPrivateUsage] - a ledger of 300 workloads says no more

    assert len(set(names.values())) == MOST + 1
    assert set(names) == {f"w{n}" for n in range(3 * MOST)}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_prometheus_has_nothing_to_say_against_it(url: str, tmp_path: Path) -> None:
    page = httpx.get(f"{url}/metrics", trust_env=False).content
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)

    assert done.returncode == 0, done.stderr + done.stdout
