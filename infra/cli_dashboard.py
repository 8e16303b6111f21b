"""The verb of the dashboard."""

from typing import Annotated

import typer

from domain.doors import is_loopback
from domain.errors import InputError, Place
from infra import dashboard as served
from infra import stack
from infra.settings import load_settings

verbs = typer.Typer()


@verbs.command()
def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: HEADRACE_PORT_DASHBOARD.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy with TLS is in front, and asks for a login: it has none.")
    ] = False,
) -> None:
    """Serve the dashboard until stopped; the stack has one of its own."""
    if not is_loopback(host) and not behind_proxy:
        hint = "Put a proxy in front that asks for a login and say --behind-proxy, or listen on 127.0.0.1."
        raise InputError(
            Place("--host"), f"{host} can be reached from elsewhere, and the dashboard has no login", hint=hint
        )
    # The stack gives its dashboard what it needs, and no more: not even where the stack is.
    settings = load_settings() if load_settings().reader_url else stack.connect()
    served.serve(host, port or settings.port_dashboard, settings)
