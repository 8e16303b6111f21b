"""COPY into the ledger: every value comes back as it went in, and writing again changes nothing."""

import math
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.errors import StoreError
from infra.db.session import transaction
from infra.db.store.writing import copy_new, copy_over
from infra.db.tables import AttemptRow, Base, CompletionRow, OutcomeRow
from tests.integration.begun_runs import open_run

EXAMPLES = settings(max_examples=25, deadline=None, database=None, derandomize=True)

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["\\N", "\\.", "a\tb", "a\nb", "a\r\nb", "\\t", "\\\\", '"', "", "grüße 🂡", "{}", "NULL", "\x01\x7f"]
)
COUNTS = st.integers(-(2**31), 2**31 - 1)
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
# Below 1e16: JSONB holds numbers by their digits, and larger floats come back as integers.
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e15, 1e15) | TEXTS
OBJECTS = st.dictionaries(
    TEXTS, st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
)


class Undone(Exception):
    """Takes a transaction back."""


@contextmanager
def trial() -> Iterator[Session]:
    """A transaction of which nothing stays."""
    with suppress(Undone), transaction() as db:
        yield db
        raise Undone


@pytest.fixture(scope="module")
def a_run(ledger: str) -> str:
    """One run for the many examples of a test."""
    return open_run()


def attempt(run_id: str, **values: Any) -> dict[str, Any]:
    return {
        "attempt_id": str(uuid.uuid4()),
        "run_id": run_id,
        "stage": "generate",
        "tier": "cheap",
        "record_key": "r",
        "request_hash": "h",
        "number": 0,
        "cached": False,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "seconds": 0.1,
        "usd": 0.0,
        "worker": "w",
        "outcome": "ok",
        "detail": None,
    } | values


def completion(key: str, **values: Any) -> dict[str, Any]:
    return {
        "request_hash": key,
        "model": "m",
        "text": "t",
        "finish_reason": "stop",
        "label_logprobs": {},
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "fingerprint": None,
        "frame_hash": "f",
        "last_message": {},
    } | values


def outcome(run_id: str, key: str, usd: float) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "record_key": key,
        "tier": "cheap",
        "output": {},
        "confidence": None,
        "escalated": False,
        "usd": usd,
    }


def stored(db: Session, table: type[Base], like: dict[str, Any], key: str) -> dict[str, Any]:
    """The row that was written as `like`, with the same columns."""
    columns = table.__table__.columns
    return dict(db.execute(select(*(columns[name] for name in like)).where(columns[key] == like[key])).one()._mapping)


PLAIN = st.fixed_dictionaries(
    {
        "attempt_id": st.uuids().map(str),
        "worker": TEXTS,
        "detail": st.none() | TEXTS,
        "number": COUNTS,
        "cached": st.booleans(),
        "seconds": st.floats(),
        "usd": st.floats(),
        "at": MOMENTS,
    }
)
JSON = st.fixed_dictionaries({"label_logprobs": OBJECTS, "last_message": OBJECTS, "text": TEXTS})


@EXAMPLES
@given(given_rows=st.lists(PLAIN, min_size=1, max_size=8, unique_by=lambda row: row["attempt_id"]))
def test_plain_values_come_back_as_they_went_in(a_run: str, given_rows: list[dict[str, Any]]) -> None:
    rows = [attempt(a_run, **values) for values in given_rows]
    with trial() as db:
        assert copy_new(db, AttemptRow, rows) == len(rows)
        for row in rows:
            found = stored(db, AttemptRow, row, "attempt_id")
            assert found.pop("at") == row.pop("at")
            assert {name: repr(value) for name, value in found.items()} == {k: repr(v) for k, v in row.items()}


@EXAMPLES
@given(given_rows=st.lists(JSON, min_size=1, max_size=5))
def test_json_comes_back_as_it_went_in(ledger: str, given_rows: list[dict[str, Any]]) -> None:
    rows = [completion(uuid.uuid4().hex, **values) for values in given_rows]
    with trial() as db:
        assert copy_over(db, CompletionRow, rows) == len(rows)
        for row in rows:
            assert stored(db, CompletionRow, row, "request_hash") == row


def test_what_is_not_given_gets_its_default_and_none_in_a_json_column_is_null(run_id: str) -> None:
    row = completion(uuid.uuid4().hex, last_message={"a": None})
    with transaction() as db:
        copy_new(db, CompletionRow, [row])
    with transaction() as db:
        found = db.get_one(CompletionRow, (row["request_hash"], 0))
        assert found.created_at is not None
        assert found.last_message == {"a": None}
    with pytest.raises(StoreError, match="null value in column"), transaction() as db:
        copy_new(db, CompletionRow, [completion("x", label_logprobs=None)])


def test_the_first_of_a_key_stays_or_the_last_wins(run_id: str) -> None:
    rows = [outcome(run_id, key, usd) for key, usd in [("a", 1.0), ("b", 2.0), ("a", 3.0), ("b", 4.0), ("a", 5.0)]]

    def written() -> list[tuple[str, float]]:
        query = select(OutcomeRow.record_key, OutcomeRow.usd).where(OutcomeRow.run_id == run_id)
        return [(key, usd) for key, usd in db.execute(query.order_by(OutcomeRow.record_key))]

    with transaction() as db:
        assert copy_new(db, OutcomeRow, rows) == 2
        assert written() == [("a", 1.0), ("b", 2.0)]
        assert copy_new(db, OutcomeRow, rows[2:]) == 0
        assert written() == [("a", 1.0), ("b", 2.0)]
        assert copy_over(db, OutcomeRow, rows) == 2
        assert written() == [("a", 5.0), ("b", 4.0)]
        assert copy_over(db, OutcomeRow, [outcome(run_id, "b", 6.0), outcome(run_id, "c", 7.0)]) == 2
        assert written() == [("a", 5.0), ("b", 6.0), ("c", 7.0)]


@pytest.mark.parametrize("write", [copy_new, copy_over])
def test_the_same_transaction_again_changes_nothing(run_id: str, write: Any) -> None:
    rows = [outcome(run_id, str(n), n / 7) for n in range(1000)]
    marks = select(OutcomeRow.record_key, text("xmin"), text("ctid")).where(OutcomeRow.run_id == run_id)
    with transaction() as db:
        assert write(db, OutcomeRow, rows) == 1000
    with transaction() as db:
        before = set(db.execute(marks))
        assert write(db, OutcomeRow, rows) == 0
        assert set(db.execute(marks)) == before


def test_nothing_of_an_abandoned_transaction_comes_back_with_the_next(run_id: str) -> None:
    with trial() as db:
        assert copy_new(db, OutcomeRow, [outcome(run_id, "a", 1.0)]) == 1
    with transaction() as db:
        assert copy_new(db, OutcomeRow, [outcome(run_id, "b", 1.0)]) == 1
    with transaction() as db:
        assert copy_new(db, OutcomeRow, [outcome(run_id, "c", 1.0)]) == 1
        assert db.scalar(select(func.count()).where(OutcomeRow.run_id == run_id)) == 2


def test_a_second_call_in_a_transaction_writes_its_own_rows_and_no_others(run_id: str) -> None:
    with transaction() as db:
        copy_new(db, OutcomeRow, [outcome(run_id, "a", 1.0)])
        db.execute(delete(OutcomeRow).where(OutcomeRow.run_id == run_id))
        assert copy_over(db, OutcomeRow, [outcome(run_id, "b", 1.0)]) == 1
        assert list(db.scalars(select(OutcomeRow.record_key).where(OutcomeRow.run_id == run_id))) == ["b"]


def test_rows_are_read_one_at_a_time_and_not_kept(run_id: str) -> None:
    class Weighed(dict[str, Any]):
        """A dict that can be watched."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    alive: weakref.WeakSet[Weighed] = weakref.WeakSet()
    most = 0

    def rows() -> Iterator[Weighed]:
        nonlocal most
        for n in range(2000):
            row = Weighed(outcome(run_id, str(n), 0.0))
            alive.add(row)
            most = max(most, len(alive))
            yield row

    with transaction() as db:
        assert copy_new(db, OutcomeRow, rows()) == 2000
    assert most <= 4


def test_no_rows_are_no_work(ledger: str) -> None:
    with transaction() as db:
        assert copy_new(db, OutcomeRow, []) == copy_over(db, OutcomeRow, iter(())) == 0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"text": "a\0b"}, "NUL character.*column text"),
        ({"last_message": {"content": "a\0b"}}, "NUL character.*column last_message"),
        ({"last_message": {"a\0b": 1}}, "NUL character"),
        ({"label_logprobs": {"a": math.nan}}, "not JSON compliant"),
        ({"label_logprobs": {"a": [-math.inf]}}, "not JSON compliant"),
        ({"text": "\ud800"}, "surrogates not allowed"),
        ({"last_message": {"content": "\ud800"}}, "surrogates not allowed"),
        ({"nobody": 1}, "other columns than the first"),
    ],
)
def test_a_row_that_cannot_be_stored_is_refused_and_so_is_all_with_it(
    ledger: str, values: dict[str, Any], reason: str
) -> None:
    key = uuid.uuid4().hex
    with pytest.raises(ValueError, match=reason), transaction() as db:
        copy_new(db, CompletionRow, [completion(key), completion("x", **values)])
    with transaction() as db:
        assert db.get(CompletionRow, (key, 0)) is None
        assert copy_new(db, CompletionRow, [completion(key)]) == 1


def test_a_text_that_only_looks_like_an_escaped_nul_is_a_text(ledger: str) -> None:
    row = completion(uuid.uuid4().hex, last_message={"content": "\\u0000 null NaN"}, text="\\u0000")
    with transaction() as db:
        copy_new(db, CompletionRow, [row])
        assert stored(db, CompletionRow, row, "request_hash") == row


def test_what_postgres_refuses_is_raised_as_by_any_statement(run_id: str) -> None:
    with pytest.raises(StoreError, match="foreign key") as refused, transaction() as db:
        copy_new(db, OutcomeRow, [outcome("nobody", "a", 1.0)])
    assert isinstance(refused.value.__cause__, IntegrityError)


def test_a_connection_that_dies_while_rows_are_copied_is_an_outage_and_is_not_used_again(run_id: str) -> None:
    def rows(victim: int) -> Iterator[dict[str, Any]]:
        yield outcome(run_id, "first", 1.0)
        with transaction() as other:
            assert other.scalar(select(func.pg_terminate_backend(victim, 5000)))
        for n in range(20_000):
            yield outcome(run_id, str(n), 1.0)

    with pytest.raises(StoreError, match="not available"), transaction() as db:
        copy_new(db, OutcomeRow, rows(db.scalar(select(func.pg_backend_pid())) or 0))
    with transaction() as db:
        assert copy_new(db, OutcomeRow, [outcome(run_id, "first", 1.0)]) == 1
        assert db.scalar(select(func.count()).where(OutcomeRow.run_id == run_id)) == 1
