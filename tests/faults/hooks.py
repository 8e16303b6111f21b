"""Hooks into a run's process: where it dies, and what Postgres hears from it. The product carries nothing for them."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

from infra.llm.gateway_link import Ask, Link, Told

DIED = 9
"""The exit code of a process that ended at one of its points."""


def die_at(n: int) -> None:
    """End this process without a word at the n-th of its points: each commit, request and batch of replies.

    Before and after a commit, as SQLAlchemy's session events say; before a request is handed to the gateway's process
    and after replies came from there. The lease's own thread does not count: when it comes along depends on the time.
    """
    reached = 0
    lock = threading.Lock()

    def point(name: str) -> None:
        nonlocal reached
        if threading.current_thread().name == "lease":
            return
        with lock:
            reached += 1
            if reached == n:
                print(json.dumps({"died": name, "point": n}), flush=True)
                os._exit(DIED)

    event.listen(Session, "before_commit", lambda _session: point("before commit"))
    event.listen(Session, "after_commit", lambda _session: point("after commit"))

    say, hear = Link[Told].say, Link[Told].data_received

    def saying(link: Link[Told], message: object) -> None:
        if isinstance(message, Ask):
            point("before a request")
        say(link, message)

    def hearing(link: Link[Told], data: bytes) -> None:
        hear(link, data)
        point("after replies")

    setattr(Link, "say", saying)  # noqa: B010 - a type checker minds the plain assignment
    setattr(Link, "data_received", hearing)  # noqa: B010


def sign(name: str) -> None:
    """Tell Postgres on every connection who this is, for the record of writes; no commit is sent for it."""

    def tell(connection: Any, _record: Any) -> None:
        connection.autocommit = True
        connection.execute(f"SET application_name = '{name}'")
        connection.autocommit = False

    event.listen(Pool, "connect", tell)


GUARDS = (
    "lock_timeout",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "client_connection_check_interval",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "tcp_user_timeout",
)
"""What keeps a broken network from blocking a row for ever."""


def list_guards(to: Path) -> None:
    """Write down, for every connection that is opened, what Postgres says its time limits are."""

    def note(connection: Any, _record: Any) -> None:
        connection.autocommit = True
        found = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", [list(GUARDS)])
        with to.open("a") as out:
            out.write(json.dumps(dict(found.fetchall())) + "\n")
        connection.autocommit = False

    event.listen(Pool, "connect", note)
