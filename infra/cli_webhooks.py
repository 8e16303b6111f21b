"""The verbs of webhooks: serve, secret, send-test, deliveries, replay."""

import json
import logging
import sys
import time
from typing import Annotated

import typer
from rich.console import Console

from domain.errors import InputError, Place
from infra import credentials, stack
from infra.background import Loop
from infra.settings import load_settings
from infra.terminal import print_json

verbs = typer.Typer()
webhooks = typer.Typer(no_args_is_help=True, help="Messages from outside that a dataset has changed.")
verbs.add_typer(webhooks, name="webhooks")
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

SourceName = Annotated[str, typer.Argument(help="A source of triggers.yaml.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


@webhooks.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: HEADRACE_PORT_WEBHOOKS.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy with TLS is in front: any address may be listened on.")
    ] = False,
    only_receive: Annotated[
        bool, typer.Option("--only-receive", help="Write messages down only; another such service does the rest.")
    ] = False,
) -> None:
    """Receive messages, and do what they start, until stopped."""
    from infra import webhooks as receiver
    from infra.db import session

    receiver.check_host(host, behind_proxy=behind_proxy)
    settings = stack.connect()
    session.check_schema(only_when_up=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    loops: list[Loop] = []
    if not only_receive:
        from infra import triggering

        loops = triggering.loops(settings)
    receiver.serve(settings, host, settings.port_webhooks if port is None else port, loops)


@webhooks.command()
def secret(
    source: SourceName,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one; the old one stays valid as well.")] = False,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Make the newest one the only valid one.")] = False,
) -> None:
    """Make a source's secret and print it, this once: give it to the sender."""
    from infra import sending, signatures

    settings = load_settings()
    scheme = sending.declared(settings, source).scheme
    known = signatures.secrets_of(settings, source)
    file = signatures.secrets_file(settings, source)
    if rotate and drop_old:
        raise InputError(Place("--drop-old"), "the sender does not know the new secret yet", hint="First --rotate.")
    if drop_old:
        if known:
            credentials.write(file, known[0] + "\n")
        console.print(f"{source}: {max(len(known) - 1, 0)} older secrets are no longer valid")
        return
    if known and not rotate:
        raise InputError(Place(source), "there is a secret already", hint="Make a second one with --rotate.")
    made = signatures.new_secret(scheme)
    credentials.write(file, "\n".join([made, *known][: signatures.MOST_SECRETS]) + "\n")
    sys.stdout.write(made + "\n")  # bare, so that it can be piped
    said = f"valid beside it: {len(known[: signatures.MOST_SECRETS - 1])} older" if known else "the only valid one"
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"{source}: {said}; kept in {file}")


@webhooks.command(name="send-test")
def send_test(
    source: SourceName,
    dataset: Annotated[str, typer.Argument(help="A dataset of triggers.yaml that lists the source.")],
    url: Annotated[str | None, typer.Option(help="Where the receiver is; default: on this machine.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a signed example, printed as a curl command; 0 it was received, 1 refused, 3 nobody answers."""
    from infra import ports, sending

    settings = load_settings()
    base = url or f"http://127.0.0.1:{ports.remembered(settings).get('webhooks', settings.port_webhooks)}"
    message = sending.sample(settings, source, dataset, url=base, now=time.time())
    if not as_json:
        console.print(message.curl, markup=False)
    status, answer = sending.send(message)
    if as_json:
        print_json(console, json.dumps({"curl": message.curl, "status": status, "answer": answer}))
    else:
        console.print(f"\n{status}  {answer}", markup=False)
    if status >= 300:
        raise typer.Exit(1)


@webhooks.command()
def deliveries(as_json: AsJson = False, limit: Annotated[int, typer.Option(min=1)] = 20) -> None:
    """List the newest deliveries, and what each of them led to."""
    stack.connect()
    from infra import showing_webhooks

    showing_webhooks.list_deliveries(console, limit=limit, as_json=as_json)


@webhooks.command()
def replay(delivery: Annotated[str, typer.Argument(help="A delivery's id, or the beginning of its key.")]) -> None:
    """Have a delivery's datasets looked at once more; a dataset that has not changed starts nothing."""
    settings = stack.connect()
    from infra import showing_webhooks

    showing_webhooks.replay(console, settings, delivery)
