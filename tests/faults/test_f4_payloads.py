"""F4, the other half: addresses and paths in fields of believed messages. Nothing that a payload names is opened."""

import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.deliveries import UPDATED
from domain.triggers import Scheme
from infra.settings import load_settings
from infra.webhooks import make_app
from tests.faults.test_f4_ssrf import URIS
from tests.integration.receivers import DATASETS, Sender, inbox, receiving_here, write_triggers

pytestmark = pytest.mark.timeout(300)
_watched: list[list[str]] = []  # an audit hook stays for good; it notes only while somebody watches


def _note(event: str, given: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "socket.connect", "socket.getaddrinfo"):
        _watched[0].append(str(given[:2]))


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """What this process opens, connects to and looks up."""
    sys.addaudithook(_note)
    _watched.append([])
    yield _watched[0]
    _watched.clear()


@pytest.fixture
def canary() -> Iterator[tuple[int, list[int]]]:
    """A port of this machine where nobody should ever come, and who came."""
    came: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def count() -> None:
            while True:
                try:
                    connection, address = listening.accept()
                except OSError:
                    return
                came.append(address[1])
                connection.close()

        threading.Thread(target=count, daemon=True).start()
        yield listening.getsockname()[1], came


def test_nothing_that_a_believed_message_names_is_opened(
    ledger: str,
    tmp_path: Path,
    opened: list[str],
    canary: tuple[int, list[int]],
    report: Callable[[str], None],
) -> None:
    port, came = canary
    senders = [Sender(scheme) for scheme in (Scheme.STANDARD, Scheme.GITHUB, Scheme.HUGGINGFACE)]
    settings = load_settings().model_copy(update={"triggers": write_triggers(tmp_path, *senders)})
    marked = [f"{uri}#{uuid.uuid4().hex}" for uri in (*URIS, f"http://127.0.0.1:{port}/x", "/etc/shadow", "../../x")]
    with receiving_here(make_app(settings)) as url, httpx.Client(trust_env=False) as client:
        statuses: list[int] = []
        for hostile in marked:
            for sender in senders:
                body = json.dumps(_naming(sender.scheme, hostile)).encode()
                headers = sender.signed(body, delivery_id=f"{time.time_ns()}")
                statuses.append(client.post(f"{url}/hooks/{sender.name}", content=body, headers=headers).status_code)
    touched = [what for what in opened for hostile in marked if hostile in what]
    named = {dataset for sender in senders for _, _, datasets in inbox(sender.name) for dataset in datasets}
    report(
        f"{len(statuses)} believed messages with {len(marked)} addresses and paths in their fields: {len(touched)} "
        f"opened, {len(came)} connects at the canary, datasets meant {sorted(named)}"
    )
    assert set(statuses) == {202}
    assert (touched, came) == ([], [])
    assert named <= set(DATASETS)
    assert named
    socket.create_connection(("127.0.0.1", port)).close()
    assert any(f"'127.0.0.1', {port}" in what for what in opened), "the hook does see what is opened"


def _naming(scheme: Scheme, hostile: str) -> dict[str, Any]:
    """A message that means a dataset, with something hostile wherever a sender may write."""
    more = {"uri": hostile, "url": hostile, "path": hostile, "workload": hostile, "parameters": {"uri": hostile}}
    if scheme is Scheme.STANDARD:
        return {"type": UPDATED, "data": {"dataset": DATASETS[0], **more}, **more}
    if scheme is Scheme.GITHUB:
        commit = {"added": [hostile], "modified": [hostile], "removed": [], "url": hostile}
        repository = {"full_name": "me/data", "clone_url": hostile, "url": hostile}
        return {"ref": "refs/heads/main", "repository": repository, "commits": [commit], **more}
    refs = [{"ref": "refs/heads/main", "newSha": hostile}]
    repo = {"type": "dataset", "name": "me/data", "headSha": hostile, "url": {"web": hostile, "api": hostile}}
    return {"event": {"scope": "repo.content"}, "repo": repo, "updatedRefs": refs, **more}
