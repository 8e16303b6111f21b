"""The one engine, and sessions on it: fenced while this process holds a lease, tried again while Postgres is away."""

import json
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import orjson
import psycopg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from domain.errors import LeaseLost, SchemaMismatch, StoreError
from infra.db import revisions
from infra.db.store import leases, views
from infra.settings import load_settings

T = TypeVar("T")
MIGRATIONS = revisions.MIGRATIONS

# A peer that left without a word is noticed by both ends in about six seconds, and the transaction it left open is
# rolled back by then, so that a lost COMMIT is repeated within ten. A statement that only takes long is not touched:
# while it runs, both ends still acknowledge each other's probes.
_SERVER = {
    "lock_timeout": "15s",
    "statement_timeout": "300s",
    "idle_in_transaction_session_timeout": "7s",
    "client_connection_check_interval": "2s",
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "6s",
}
CONNECT_ARGS = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 6_000,
    "application_name": "headrace",
    "options": " ".join(f"-c {name}={value}" for name, value in _SERVER.items()),
}
COMMIT_ANSWER_S = 5.0
"""An answer to COMMIT, to a fence or to a ping that takes longer is taken as lost."""
STATEMENT_ANSWER_S = 310.0
"""The same for statements: a little more than the server gives them itself."""

# SQLSTATEs after which the same work may well succeed: broken connections, serialization failures and deadlocks, too
# few resources, a server that stops or starts, locks, and a transaction that was left idle.
_TRANSIENT_CLASSES = ("08", "40", "53")
_TRANSIENT = ("57P01", "57P02", "57P03", "55P03", "25P03")


class _Answering(psycopg.Connection[TupleRow]):
    """A connection that does not wait for ever: TCP cannot tell a silent peer from one behind a silent proxy."""

    answer_s = STATEMENT_ANSWER_S

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for the server, at most `answer_s` seconds; then the connection is closed as broken."""
        try:
            return super().wait(gen, interval, self.answer_s if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise


@dataclass(frozen=True, slots=True)
class Fence:
    """What lets this process write: its lease on a piece of work. `lost` is called when somebody else has it."""

    work: str
    token: int
    lost: Callable[[], None] | None = None


_fences: list[Fence] = []  # none or one: a process carries out one run
_checked: set[str] = set()  # addresses whose ledger was seen to have this code's schema


def raise_fence(fence: Fence) -> None:
    """From here on every transaction of this process first makes sure that its lease still holds."""
    _fences[:] = [fence]


def lower_fence() -> None:
    """This process writes without a lease again, as the command line does."""
    _fences.clear()


def database_url() -> str:
    """The ledger's address; raises StoreError when neither the user nor the stack has given one."""
    url = load_settings().database_url
    if url is None:
        raise StoreError("no database is configured", hint="Start the stack with `headrace up` or set DATABASE_URL.")
    return url


@cache
def engine_for(url: str, *, pool_size: int = 5, max_overflow: int = 10) -> Engine:
    """One pooled engine a process, address and purpose."""
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=max_overflow,
        connect_args=CONNECT_ARGS,
        json_deserializer=_read_json,
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "checkin", _expect_quick_answers)
    event.listen(engine, "checkout", _expect_slow_answers)
    return engine


_LONG_NUMBER = re.compile(rb"\d{19}")


def _read_json(text: bytes | str) -> Any:
    """JSON as it was written: orjson, but for integers that it would turn into floats."""
    data = text.encode() if isinstance(text, str) else bytes(text)
    return json.loads(data) if _LONG_NUMBER.search(data) else orjson.loads(data)


def _connect(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> _Answering:
    return _Answering.connect(*arguments, **options)


def _expect_quick_answers(connection: _Answering | None, *_: Any) -> None:
    if connection is not None:  # an invalidated one is gone already
        connection.answer_s = COMMIT_ANSWER_S


def _expect_slow_answers(connection: _Answering, *_: Any) -> None:
    connection.answer_s = STATEMENT_ANSWER_S


@contextmanager
def transaction() -> Generator[Session]:
    """A session whose work is committed as a whole at the end, or not at all.

    In a run it waits for Postgres to come back before it begins, at most `store_patience_s` seconds; what breaks later
    is not repeated here, see `retried`. Raises StoreError, and LeaseLost when another process has taken the work over.
    """
    with _translated(), _patient(_begin) if _fences else _begin() as session:
        yield session
        _commit(session)


def retried(work: Callable[[Session], T]) -> T:
    """Do work in a transaction, again and again in new ones while Postgres is away or refuses for the moment only.

    The work may be done more than once, also after a commit whose answer was lost: it has to be idempotent. Raises
    StoreError after `store_patience_s` seconds, or at once when another try cannot help, and LeaseLost.
    """

    def once() -> T:
        with _begin() as session:
            done = work(session)
            _commit(session)
            return done

    with _translated():
        return _patient(once)


@contextmanager
def heartbeat() -> Generator[Session]:
    """A transaction for the lease itself: on a connection of its own, not fenced, with quick answers only."""
    engine = engine_for(database_url(), pool_size=1, max_overflow=0)
    with _translated(), Session(engine, expire_on_commit=False) as session:
        _driver(session).answer_s = COMMIT_ANSWER_S
        yield session
        session.commit()


def check_schema(*, only_when_up: bool = False) -> None:
    """Make sure that the ledger has this code's schema, as a process's first transaction does too.

    Raises SchemaMismatch, and StoreError while Postgres is away, unless that is left to the first transaction.
    """
    try:
        with _translated(), Session(engine_for(database_url())) as session:
            _driver(session).answer_s = COMMIT_ANSWER_S
            revisions.check(session)
    except StoreError as error:
        if isinstance(error, SchemaMismatch) or not only_when_up:
            raise


def _begin() -> Session:
    url = database_url()
    session = Session(engine_for(url), expire_on_commit=False)
    try:
        if url not in _checked:
            _driver(session).answer_s = COMMIT_ANSWER_S
            revisions.check(session)
            session.rollback()  # the caller's transaction begins with its own first statement
            _checked.add(url)
        if _fences:
            _check(session, _fences[0])
    except BaseException:
        session.close()
        raise
    return session


def _check(session: Session, fence: Fence) -> None:
    _driver(session).answer_s = COMMIT_ANSWER_S
    if not leases.holds(session, fence.work, fence.token):
        if fence.lost is not None:
            fence.lost()
        raise LeaseLost(f"the lease on {fence.work[:12]} was taken over; nothing of this process is written any more.")
    _driver(session).answer_s = STATEMENT_ANSWER_S


def _commit(session: Session) -> None:
    session.flush()
    _driver(session).answer_s = COMMIT_ANSWER_S
    session.commit()


def _driver(session: Session) -> _Answering:
    return cast(_Answering, session.connection().connection.driver_connection)


def _patient(work: Callable[[], T]) -> T:
    return Retrying(
        retry=retry_if_exception(_is_transient),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        stop=stop_after_delay(load_settings().store_patience_s),
        sleep=time.sleep,
        reraise=True,
    )(work)


def _is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed on another connection, a little later."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # the server did not get to say anything
        return error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError)
    return state.startswith(_TRANSIENT_CLASSES) or state in _TRANSIENT


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except (OperationalError, PoolTimeout) as error:
        raise StoreError(f"Postgres is not available: {_first_line(error)}") from error
    except DBAPIError as error:
        raise StoreError(f"Postgres refused: {_first_line(error)}") from error


def migrate(url: str | None = None) -> None:
    """Bring a ledger, by default ours, to the newest schema, and the dashboard's views with it.

    A second migrator waits for the first. Raises StoreError, and SchemaMismatch when a newer release has been there.
    """
    address = url or database_url()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", address.replace("%", "%%"))
    with _translated():
        try:
            command.upgrade(config, "head")
        except CommandError as error:  # it does not know the revision that it finds
            said = f"the ledger cannot be migrated by this code, it is of a newer release: {error}."
            raise SchemaMismatch(said, hint=SchemaMismatch.of_newer) from error
        with Session(engine_for(address)) as db:
            views.lay(db)
            _commit(db)


def _first_line(error: DBAPIError | PoolTimeout) -> str:
    said = str(error.orig if isinstance(error, DBAPIError) and error.orig else error).strip()
    return said.splitlines()[0] if said else type(error).__name__
