"""Deliveries as people read them."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain.errors import InputError, NotFound, Place
from domain.triggers import POLL
from infra.db.session import transaction
from infra.db.store import deliveries
from infra.db.store.deliveries import Change, Delivery
from infra.settings import Settings
from infra.terminal import print_json
from infra.triggers import load_triggers

KEY_SHOWN = 10
COLOURS = {"started": "green", "joined": "green", "failed": "red", "waiting": "yellow"}


def list_deliveries(console: Console, *, limit: int, as_json: bool) -> None:
    """The newest deliveries, a line for each of their changes."""
    with transaction() as db:
        found = deliveries.load_deliveries(db, limit=limit)
    if as_json:
        print_json(console, json.dumps([asdict(delivery) for delivery in found], default=str))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("delivery", "received", "source", "event", "dataset", "state", "version", "run", "detail"):
        table.add_column(heading)
    for delivery in found:
        for change in delivery.changes or (None,):
            table.add_row(*_cells(delivery, change))
    console.print(table if found else "no deliveries yet\nnext   headrace webhooks send-test SOURCE DATASET")


def _cells(delivery: Delivery, change: Change | None) -> list[str]:
    head = [
        delivery.key[:KEY_SHOWN],
        delivery.received_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        escape(delivery.source),
        escape(delivery.event),
    ]
    if change is None:
        return [*head, "-", "nothing for us", "-", "-", ""]
    colour = COLOURS.get(change.state, "dim")
    fate = [(change.dataset_version or "-")[:12], (change.run_id or "-")[:8], escape(change.detail)]
    return [*head, escape(change.dataset), f"[{colour}]{change.state}[/]", *fate]


def replay(console: Console, settings: Settings, wanted: str) -> None:
    """Have a delivery's datasets looked at again, as far as triggers.yaml still lets its source name them.

    Raises NotFound, InputError when it may name none of them any more, and StoreError.
    """
    triggers = load_triggers(settings)
    with transaction() as db:
        delivery = deliveries.find_delivery(db, wanted)
        if not delivery.datasets:
            raise NotFound(f"The delivery {delivery.key[:KEY_SHOWN]} means no dataset of ours.", hint="Choose another.")
        watched = {name: triggers.datasets[name] for name in delivery.datasets if name in triggers.datasets}
        named = [
            name
            for name, dataset in watched.items()
            if delivery.source in dataset.sources or (delivery.source == POLL and dataset.poll_s is not None)
        ]
        if not named:
            place = Place("triggers.yaml")
            raise InputError(place, f"{delivery.source} may name none of {', '.join(delivery.datasets)} any more")
        deliveries.replay(db, delivery.key, named)
    for name in delivery.datasets:
        said = "waits to be looked at again" if name in named else "left out: triggers.yaml no longer lets it"
        console.print(f"{escape(name)}: {said}")
