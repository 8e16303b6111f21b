"""The verbs on notices out: list them, send dead ones again, try an endpoint, make its secret."""

import asyncio
import base64
import json
import secrets as randomness
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain.errors import InputError, NotFound, Place
from domain.triggers import Endpoint
from infra import credentials, stack
from infra.db.store.notices import Notice
from infra.settings import Settings, load_settings
from infra.terminal import print_json

verbs = typer.Typer()
notices = typer.Typer(invoke_without_command=True, help="What others are told of, and whether it has arrived.")
verbs.add_typer(notices, name="notices")
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
EndpointName = Annotated[str, typer.Argument(help="A name below notify in triggers.yaml.")]
TEST_EVENT = "headrace.test"


@notices.callback()
def list_notices(
    context: typer.Context,
    dead: Annotated[bool, typer.Option("--dead", help="Only those that were given up.")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """List the newest notices: delivered, waiting for another try, or given up."""
    if context.invoked_subcommand is not None:
        return
    stack.connect()
    from infra.db.session import transaction
    from infra.db.store.notices import load

    with transaction() as db:
        found = load(db, state="dead" if dead else None, limit=limit)
    if as_json:
        print_json(console, json.dumps([asdict(notice) for notice in found], default=str))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("at", "endpoint", "state", "tries", "key", "last error"):
        table.add_column(heading)
    for notice in found:
        at = notice.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        words = (at, notice.endpoint, notice.state, str(notice.tries), notice.key, notice.error)
        table.add_row(*(escape(word) for word in words))
    console.print(table if found else "no notices" + (" were given up" if dead else " yet"))


@notices.command()
def retry(key: Annotated[str, typer.Argument(help="A dead notice's key or its beginning.")]) -> None:
    """Send dead notices again, from the first try on."""
    stack.connect()
    from infra.db.session import transaction
    from infra.db.store.notices import revive

    with transaction() as db:
        count = revive(db, key)
    console.print(f"{count} notices are sent again by `headrace webhooks serve`")


@notices.command()
def test(endpoint: EndpointName) -> None:
    """Send a signed test message to an endpoint now: 0 it has arrived, 1 it has not."""
    settings = load_settings()
    declared = _declared(settings, endpoint)
    from infra.notifying import send_once

    now = datetime.now(UTC)
    key = f"{TEST_EVENT}/{now.isoformat()}"
    payload = {"type": TEST_EVENT, "timestamp": now.isoformat(), "data": {"endpoint": endpoint}}
    notice = Notice(endpoint, key, TEST_EVENT, payload, "waiting", 1, "", now, now, None)
    sent = asyncio.run(send_once(notice, declared, settings))
    console.print(f"{endpoint}: {escape(sent.error) or 'it has arrived'}")
    if sent.error:
        raise typer.Exit(1)


@notices.command()
def secret(
    endpoint: EndpointName,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make another one; messages are signed with both.")] = False,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Sign with the newest one only.")] = False,
) -> None:
    """Make an endpoint's secret and print it, this once: give it to the receiver."""
    settings = load_settings()
    _declared(settings, endpoint)
    from infra.notifying import secrets_file

    file = secrets_file(settings, endpoint)
    known = file.read_text(encoding="ascii").split() if file.is_file() else []
    if drop_old:
        credentials.write(file, "".join(f"{each}\n" for each in known[:1]))
        console.print(f"{endpoint}: messages are signed with the newest secret only")
        return
    if known and not rotate:
        raise InputError(Place(endpoint), "there is a secret already", hint="Make a second one with --rotate.")
    made = "whsec_" + base64.b64encode(randomness.token_bytes(32)).decode()
    credentials.write(file, "".join(f"{each}\n" for each in (made, *known[:1])))
    sys.stdout.write(made + "\n")  # bare, so that it can be piped
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"{endpoint}: kept in {file}")


def _declared(settings: Settings, name: str) -> Endpoint:
    from infra.triggers import load_triggers

    known = load_triggers(settings).notify
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise NotFound(f"triggers.yaml has no endpoint {name!r}.", hint=f"Declared below notify: {names}.")
    return known[name]
