"""What becomes of one message: believed or not, written down once, and answered."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Literal

from domain.deliveries import datasets_meant, read_payload, said_by
from domain.errors import HeadraceError, NotFound
from infra import signatures
from infra.db.session import transaction
from infra.db.store import deliveries
from infra.db.store.deliveries import Received
from infra.settings import Settings
from infra.signatures import Headers
from infra.triggers import load_triggers

log = logging.getLogger("headrace")
Status = Literal["received", "repeated", "nothing for us"]


class IdTaken(HeadraceError):
    """The id of a message belongs to another one that we have."""

    hint = "A sender must give each message an id of its own, and a message sent again its old id and body."


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a message that was believed came to: its id, and the datasets that it means."""

    status: Status
    delivery: str
    datasets: tuple[str, ...]


def receive(settings: Settings, source: str, headers: Headers, body: bytes, *, now: float) -> Receipt:
    """Check a message, and write it down with a waiting change for each dataset that it means, in one transaction.

    Once this returns the message is ours: whatever dies afterwards, its changes are carried out. Raises NotFound
    (no such source), NotBelieved, InputError (not a payload), IdTaken, StoreError (Postgres is away), and
    WorkloadError when our own triggers.yaml is wrong.
    """
    triggers = load_triggers(settings)
    if source not in triggers.sources:
        raise NotFound("There is no such source.", hint="Sources are declared in triggers.yaml.")
    scheme = triggers.sources[source].scheme
    believed = signatures.verify(scheme, headers, body, signatures.secrets_of(settings, source), now=now)
    said = said_by(scheme, believed.event, read_payload(body))
    meant = datasets_meant(triggers, source, said)
    with transaction() as db:
        found = deliveries.receive(
            db,
            source=source,
            delivery_id=believed.delivery_id,
            body_hash=hashlib.sha256(body).hexdigest(),
            event=said.event,
            datasets=[(name, triggers.datasets[name].debounce_s) for name in meant],
        )
    log.info("%s: %s, %s, %s", source, said.event, found, ", ".join(meant) or "no dataset of ours")
    if found is Received.CONFLICT:
        raise IdTaken("The id of this message belongs to another one.")
    status: Status = "repeated" if found is Received.REPEATED else "received" if meant else "nothing for us"
    return Receipt(status, believed.delivery_id, meant)
