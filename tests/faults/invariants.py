"""The invariants, asked of Postgres in words of their own: nothing here goes through the store that is being tested."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from domain.canonical import digest
from infra.db.session import database_url, engine_for
from tests.faults.material import TOPICS, mark, mark_in


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a run's rows."""

    state: str
    rows: int
    done: int
    quarantined: int
    pending: int
    twice: int
    """Results beyond one a row, in whatever table (I2)."""
    misaligned: int
    """Results that belong to another row than the one they stand by (I3)."""

    @property
    def lost(self) -> int:
        """Rows that the equation cannot account for (I1)."""
        return self.rows - self.done - self.quarantined - self.pending

    def holds(self) -> bool:
        """I1, I2 and I3; a run that says that it is over has nothing pending."""
        over = self.state != "completed" or self.pending == 0
        return over and self.lost == self.twice == self.misaligned == 0

    def __str__(self) -> str:
        return (
            f"{self.rows} rows: {self.done} done, {self.quarantined} quarantined, {self.pending} pending, "
            f"{self.lost} lost, {self.twice} duplicates, {self.misaligned} misaligned"
        )


def ask(question: str, **given: Any) -> list[Any]:
    """Rows of an SQL question to the ledger."""
    with engine_for(database_url()).connect() as db:
        return list(db.execute(text(question), given).all())


def one(question: str, **given: Any) -> Any:
    """The only value of an SQL question."""
    ((value,),) = ask(question, **given)
    return value


COUNTS = """
SELECT (SELECT state FROM runs WHERE id = :run),
       (SELECT count(*) FROM run_rows WHERE run_id = :run),
       (SELECT count(*) FROM outcomes WHERE run_id = :run),
       (SELECT count(*) FROM quarantined WHERE run_id = :run),
       (SELECT count(*) FROM run_rows r WHERE r.run_id = :run
           AND NOT EXISTS (SELECT FROM outcomes o WHERE (o.run_id, o.record_key) = (:run, r.record_key))
           AND NOT EXISTS (SELECT FROM quarantined q WHERE (q.run_id, q.record_key) = (:run, r.record_key)))
"""
TWICE = """
SELECT coalesce(sum(n - 1), 0) FROM (
    SELECT count(*) n FROM (
        SELECT record_key FROM outcomes WHERE run_id = :run
        UNION ALL SELECT record_key FROM quarantined WHERE run_id = :run) AS ends GROUP BY record_key
    UNION ALL SELECT count(*) FROM answers WHERE run_id = :run GROUP BY tier, record_key
    UNION ALL SELECT count(*) FROM run_rows WHERE run_id = :run GROUP BY position
    UNION ALL SELECT count(*) FROM attempts
        WHERE run_id = :run AND NOT cached AND outcome IN ('answered', 'truncated') GROUP BY request_hash
) AS counted
"""
"""A row's results, its answers of one tier, its places, and the answers paid for to one request."""

RESULTS = """
SELECT o.record_key, r.record_id, r.inputs, r.gold, o.output, f.body -> 'messages' || c.last_message
FROM outcomes o JOIN runs ON runs.id = o.run_id
LEFT JOIN records r ON r.dataset_version = runs.dataset_version AND r.key = o.record_key
LEFT JOIN answers a ON (a.run_id, a.tier, a.record_key) = (o.run_id, o.tier, o.record_key)
LEFT JOIN completions c ON c.request_hash = a.request_hash
LEFT JOIN request_frames f ON f.hash = c.frame_hash
WHERE o.run_id = :run
"""


def check(run_id: str) -> Verdict:
    """Count everything there is to know about a run's rows."""
    ((state, rows, done, quarantined, pending),) = ask(COUNTS, run=run_id)
    twice = int(one(TWICE, run=run_id))
    misaligned = sum(not _aligned(*row) for row in ask(RESULTS, run=run_id))
    return Verdict(state, rows, done, quarantined, pending, twice, misaligned)


def _aligned(key: str, record_id: str | None, inputs: Any, gold: Any, output: Any, sent: Any) -> bool:
    """Whether a result is the row's own: its key is the hash of what the row says, and the server saw that row."""
    if record_id is None or sent is None or key != digest({"id": record_id, "inputs": inputs, "gold": gold}):
        return False
    n = int(record_id[1:])
    asked = {mark_in(message["content"]) for message in sent} - {None}
    # The server echoed what it saw: this does not rest on what our side has written down.
    return asked == {mark(n)} == {mark_in(inputs["text"]), mark_in(output["echo"])} and output["topic"] == TOPICS[n % 3]


def answered(run_id: str) -> int:
    """Answers that a run has."""
    return one("SELECT count(*) FROM answers WHERE run_id = :run", run=run_id)


def stored_rows(run_id: str) -> set[int]:
    """The numbers of the rows that a run has an answer for."""
    query = """SELECT r.record_id FROM answers a JOIN runs ON runs.id = a.run_id
               JOIN records r ON r.dataset_version = runs.dataset_version AND r.key = a.record_key
               WHERE a.run_id = :run"""
    return {int(record_id[1:]) for (record_id,) in ask(query, run=run_id)}


def outcomes_of_attempts(run_id: str) -> dict[str, int]:
    """How a run's calls ended, and how often."""
    query = "SELECT outcome, count(*) FROM attempts WHERE run_id = :run AND NOT cached GROUP BY outcome"
    return dict(ask(query, run=run_id))


def paid(run_id: str) -> tuple[int, int, int]:
    """Calls, prompt tokens and completion tokens of a run by its attempts."""
    query = """SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0)
               FROM attempts WHERE run_id = :run AND NOT cached"""
    ((calls, prompt, completion),) = ask(query, run=run_id)
    return int(calls), int(prompt), int(completion)


RECORD = """
CREATE TABLE IF NOT EXISTS fault_writes (
    id bigserial PRIMARY KEY, who text, relation text, token bigint, at timestamptz DEFAULT clock_timestamp());
CREATE OR REPLACE FUNCTION record_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO fault_writes (who, relation, token)
    VALUES (current_setting('application_name'), TG_TABLE_NAME,
            CASE WHEN TG_TABLE_NAME = 'leases' THEN (to_jsonb(NEW) ->> 'token')::bigint END);
    RETURN NULL; END $$;
"""
RECORDED = ("attempts", "completions", "answers", "outcomes", "quarantined", "runs", "progress", "leases")


def record_writes() -> None:
    """From now on Postgres notes every row written, with the name of the connection that wrote it."""
    with engine_for(database_url()).begin() as db:
        db.execute(text(RECORD))
        for table in RECORDED:
            db.execute(
                text(
                    f"CREATE OR REPLACE TRIGGER record_write AFTER INSERT OR UPDATE ON {table} "
                    "FOR EACH ROW EXECUTE FUNCTION record_write()"
                )
            )


def forget_writes() -> None:
    """Note nothing more."""
    with engine_for(database_url()).begin() as db:
        for table in RECORDED:
            db.execute(text(f"DROP TRIGGER IF EXISTS record_write ON {table}"))
        db.execute(text("DROP TABLE IF EXISTS fault_writes"))


def written_by(who: str) -> int:
    """Rows that one has written."""
    return one("SELECT count(*) FROM fault_writes WHERE who = :who", who=who)


def stale_writes(former: str, taker: str) -> int:
    """Rows that the former holder wrote after another one had the lease (I5)."""
    # Whoever takes a lease waits for the writes under way, so their numbers are smaller than its own first one.
    query = """SELECT count(*) FROM fault_writes
               WHERE who = :former
               AND id > (SELECT min(id) FROM fault_writes WHERE who = :taker AND relation = 'leases')"""
    return one(query, former=former, taker=taker)
