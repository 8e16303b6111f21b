"""How things look in the terminal: services, failures, the banner."""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain.errors import HeadraceError
from infra.settings import Settings
from infra.startup import ServiceState, StackError

MARKS = {"healthy": "[green]✓[/]", "failed": "[red]✗[/]", "starting": "[yellow]…[/]", "stopped": "[dim]·[/]"}


def banner(settings: Settings) -> str:
    """The first line of a run."""
    try:
        number = version("headrace")
    except PackageNotFoundError:  # it runs from a checkout, and is never installed
        number = "0.1.0"
    return f"[bold]headrace {number}[/]  ·  home: {escape(str(settings.home))}"


def failure(error: HeadraceError) -> str:
    """An error as cause, log and fix, a line each."""
    lines = [f"[bold red]failed[/]  {escape(error.message)}"]
    if isinstance(error, StackError):
        lines = [
            f"[bold red]failed[/]  {escape(error.service)}: {escape(error.cause)}",
            f"log     {escape(str(error.log))}",
        ]
    return "\n".join([*lines, f"fix     {escape(error.fix)}"])


@contextmanager
def service_board(console: Console) -> Generator[Callable[[ServiceState], None]]:
    """Print each service when it begins, tells something new, is healthy or fails."""
    last: dict[str, tuple[str, str]] = {}

    def report(state: ServiceState) -> None:
        if last.get(state.name) == (state.phase, state.detail):
            return
        last[state.name] = (state.phase, state.detail)
        took = f"  {state.seconds:.0f} s" if state.phase == "healthy" and state.seconds >= 1 else ""
        detail = f"  {escape(state.detail)}" if state.detail and state.phase != "healthy" else ""
        console.print(f"  {MARKS[state.phase]} {state.name:<14} {escape(state.url)}{took}{detail}")

    yield report


def print_json(console: Console, text: str) -> None:
    """Print JSON that is read by programs: never coloured, whatever FORCE_COLOR says, and indented for people."""
    console.out(json.dumps(json.loads(text), indent=2), highlight=False)


def status_table(states: Sequence[ServiceState]) -> Table:
    """The services as a table."""
    table = Table(box=None, pad_edge=False)
    for heading in ("service", "state", "url", "pid", "memory", ""):
        table.add_column(heading)
    for s in states:
        memory = f"{s.memory_bytes / 2**20:,.0f} MB" if s.memory_bytes else ""
        table.add_row(
            s.name, f"{MARKS[s.phase]} {s.phase}", s.url, str(s.pid or ""), memory, escape(s.detail or s.description)
        )
    return table


def logins(settings: Settings) -> str:
    """Where the user interfaces' credentials are; never what they are."""
    secrets = escape(str(settings.home / "secrets"))
    return (
        f"logins   Prefect: headrace:<{secrets}/prefect-password>   Phoenix: admin@localhost, "
        f"<{secrets}/phoenix-admin-password>"
    )


def status_json(states: Sequence[ServiceState]) -> str:
    """The services as JSON."""
    return json.dumps([asdict(state) for state in states])
