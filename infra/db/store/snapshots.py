"""Snapshots: rows are staged while they are read; in SQL they become a dataset version and a run's own rows."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, cast

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, Text, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from domain.datasets import BadRow, Record, Split, duplicate, version_hash
from domain.errors import NotFound, Place
from infra.db.store.writing import copy_into

Numbered = tuple[int, Record | BadRow]

ROWS_A_COPY = 10_000
"""Rows read during one COPY; only the bad ones among them are kept in memory."""
ROWS_A_STATEMENT = 50_000
"""Rows that one INSERT takes over, so that none runs into its timeout."""

SOURCE_S = 600.0
"""So long the transaction waits for a file's next rows, seconds; one fetch may take as long."""

_OWN = MetaData()


def _staging(name: str, *columns: Column[Any]) -> Table:
    return Table(name, _OWN, *columns, prefixes=["TEMPORARY"], postgresql_on_commit="DROP")


STAGED = _staging(
    "staged_rows",
    Column("n", BigInteger),
    Column("key", String(64)),
    Column("record_id", Text(collation="C")),
    Column("split", String(16)),
    Column("inputs", JSONB),
    Column("gold", JSONB(none_as_null=True)),
    Column("file", Text),
    Column("line", Integer),
)
STAGED_BAD = _staging(
    "staged_bad_rows",
    Column("n", BigInteger),
    Column("key", String(64)),
    Column("file", Text),
    Column("line", Integer),
    Column("field", Text),
    Column("reason", Text),
    Column("excerpt", Text),
)


def stage(db: Session, rows: Iterable[Record | BadRow]) -> None:
    """Copy rows into tables of this transaction while they are read, numbered in their order."""
    # For the sort and the hash table of a million ids; and another run may be storing the very same version.
    db.execute(text("SET LOCAL work_mem = '64MB'; SET LOCAL lock_timeout = '290s'"))
    # The next file may be slow to open. So far this transaction is in nobody's way: its tables are its own.
    db.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{SOURCE_S:g}s'"))
    _OWN.create_all(db.connection(), checkfirst=False)
    numbered = enumerate(rows)
    for first in numbered:
        bad: list[Numbered] = []
        copy_into(db, STAGED, _good(chain((first,), islice(numbered, ROWS_A_COPY - 1)), bad))
        copy_into(db, STAGED_BAD, (_bad_columns(n, cast(BadRow, row)) for n, row in bad))
    db.execute(text("SET LOCAL idle_in_transaction_session_timeout TO DEFAULT"))
    db.execute(text("CREATE INDEX ON staged_rows (n)"))
    db.execute(text("ANALYZE staged_rows"))


def _good(rows: Iterable[Numbered], bad: list[Numbered]) -> Iterator[dict[str, Any]]:
    """The columns of the good rows; the others are added to `bad`."""
    for n, row in rows:
        if isinstance(row, BadRow):
            bad.append((n, row))
            continue
        yield {
            "n": n,
            "key": row.key,
            "record_id": row.record_id,
            "split": row.split,
            "inputs": row.inputs,
            "gold": row.gold,
            "file": row.place.file,
            "line": row.place.line,
        }


def _bad_columns(n: int, row: BadRow) -> dict[str, Any]:
    return {
        "n": n,
        "key": row.key,
        "file": row.place.file,
        "line": row.place.line,
        "field": row.place.field,
        "reason": row.reason,
        "excerpt": row.excerpt,
    }


def refuse_duplicates(db: Session) -> int:
    """Make bad rows of the staged rows whose id an earlier one has used; returns how many."""
    db.execute(
        text(
            """
            CREATE TEMP TABLE staged_twins ON COMMIT DROP AS
            SELECT later.n, later.record_id, later.file, later.line, earlier.file AS file_1, earlier.line AS line_1
            FROM (SELECT record_id, min(n) AS n FROM staged_rows GROUP BY record_id HAVING count(*) > 1) AS first
            JOIN staged_rows AS earlier ON earlier.n = first.n
            JOIN staged_rows AS later ON later.record_id = first.record_id AND later.n > first.n
            """
        )
    )
    twins = db.execute(text("SELECT * FROM staged_twins ORDER BY n"), execution_options={"yield_per": ROWS_A_COPY})
    count = 0
    for some in twins.partitions():
        copy_into(db, STAGED_BAD, (_bad_columns(row[0], _duplicate(*row[1:])) for row in some))
        count += len(some)
    if count:
        db.execute(text("DELETE FROM staged_rows WHERE n IN (SELECT n FROM staged_twins)"))
    return count


def _duplicate(record_id: str, file: str, line: int | None, first_file: str, first_line: int | None) -> BadRow:
    return duplicate(record_id, Place(file, line), first=Place(first_file, first_line))


def keep_first(db: Session, rows: int) -> None:
    """Forget the staged rows behind the first so many."""
    behind = select(STAGED.c.n).order_by(STAGED.c.n).offset(rows).limit(1).scalar_subquery()
    db.execute(STAGED.delete().where(STAGED.c.n >= behind))


def staged_hash(db: Session) -> str:
    """The hash of the dataset version that the staged rows are."""
    records = select(STAGED.c.key + STAGED.c.split).order_by(STAGED.c.n)
    bad = select(STAGED_BAD.c.key).order_by(STAGED_BAD.c.n)
    return version_hash(*(db.scalars(query, execution_options={"yield_per": ROWS_A_COPY}) for query in (records, bad)))


def save_staged(db: Session, version: str, *, uri: str) -> bool:
    """Store the staged rows as a dataset version; False when it is there already, and then no row is written.

    One that is there counts as read now: retention leaves it to the run that is about to take it.
    """
    new = db.scalar(
        text(
            """
            INSERT INTO dataset_versions (hash, uri, records, bad_rows)
            VALUES (:version, :uri, (SELECT count(*) FROM staged_rows), (SELECT count(*) FROM staged_bad_rows))
            ON CONFLICT (hash) DO UPDATE SET created_at = now()
            RETURNING xmax = 0
            """
        ),
        {"version": version, "uri": uri},
    )
    if not new:
        return False
    insert = text(
        """
        INSERT INTO records (dataset_version, key, ordinal, record_id, split, inputs, gold, file, line)
        SELECT :version, key, n, record_id, split, inputs, gold, file, line
        FROM staged_rows WHERE n >= :first AND n < :last ORDER BY n
        """
    )
    for first, last in _ranges(db, select(func.max(STAGED.c.n))):
        db.execute(insert, {"version": version, "first": first, "last": last})
    db.execute(
        text(
            """
            INSERT INTO bad_rows (dataset_version, key, file, line, field, reason, excerpt)
            SELECT :version, key, file, line, field, reason, excerpt FROM staged_bad_rows ORDER BY n
            ON CONFLICT DO NOTHING
            """
        ),
        {"version": version},
    )
    return True


def require_version(db: Session, version: str) -> str:
    """The uri that a dataset version was read from; raises NotFound when the ledger has no such version."""
    uri = db.scalar(text("SELECT uri FROM dataset_versions WHERE hash = :version"), {"version": version})
    if uri is None:
        raise NotFound(
            f"the ledger has no dataset version {version[:12]!r}.", hint="Leave it out: the dataset is read."
        )
    return cast(str, uri)


def take_version(db: Session, run_id: str, version: str, splits: Sequence[Split]) -> None:
    """Make a version's rows of these splits a run's own, bad rows its quarantine, and the version the run's."""
    take = text(
        """
        WITH own AS (
            SELECT key, ordinal FROM records
            WHERE dataset_version = :version AND split = ANY (:splits) AND ordinal >= :first AND ordinal < :last
        ), taken AS (
            INSERT INTO run_rows (run_id, record_key, position)
            SELECT :run_id, key, :base + row_number() OVER (ORDER BY ordinal) - 1 FROM own
            ON CONFLICT DO NOTHING
        )
        SELECT count(*) FROM own
        """
    )
    given = {"run_id": run_id, "version": version, "splits": [str(split) for split in splits]}
    base = 0
    for first, last in _ranges(db, text("SELECT max(ordinal) FROM records WHERE dataset_version = :version"), given):
        base += cast(int, db.scalar(take, {**given, "first": first, "last": last, "base": base}))
    for statement in (
        """
        INSERT INTO run_rows (run_id, record_key, position)
        SELECT :run_id, key, -1 FROM bad_rows WHERE dataset_version = :version
        ON CONFLICT DO NOTHING
        """,
        """
        INSERT INTO quarantined (run_id, record_key, stage, file, line, field, reason)
        SELECT :run_id, key, 'snapshot', file, line, field, reason FROM bad_rows WHERE dataset_version = :version
        ON CONFLICT DO NOTHING
        """,
        "UPDATE runs SET dataset_version = :version WHERE id = :run_id",
    ):
        db.execute(text(statement), given)


def _ranges(db: Session, newest: Any, given: dict[str, Any] | None = None) -> Iterator[tuple[int, int]]:
    top = db.scalar(newest, given or {})
    for first in range(0, -1 if top is None else top + 1, ROWS_A_STATEMENT):
        yield first, first + ROWS_A_STATEMENT
