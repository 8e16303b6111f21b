"""F4: datasets whose addresses lead to this machine or into the network behind it; nobody is asked.

Everything runs in namespaces without a way out. The kernel's own count of connections tried is what decides.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.guarded_reads import PUBLIC, REBOUND
from tests.faults.namespaces import Namespace, cabled
from tests.faults.nemesis import PATIENCE_S

pytestmark = pytest.mark.timeout(400)
METADATA, PRIVATE = "169.254.169.254", "10.1.2.3"
LISTED = ("data.example", "data.example:8443", "127.0.0.1.example", PRIVATE)
"""Hosts of the list; a private address without its port is not enough."""
LOOPBACK = (
    "127.0.0.1", "127.1", "127.0.1", "127.0.0.1.", "0", "0.0", "0x7f.1", "0x7f000001", "0x7F.0x0.0x0.0x1",
    "2130706433", "017700000001", "0177.0.0.1", "0177.1", "localhost", "localhost.", "LOCALHOST", "127.255.255.254",
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "[fe80::1%25lo]",
)  # fmt: skip
INSIDE = (
    METADATA, "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "[::ffff:169.254.169.254]",
    "[fd00:ec2::254]", PRIVATE, "10.1.515", "167838211", "10.99.0.2", "192.168.0.1", "100.100.100.200", "224.0.0.1",
)  # fmt: skip
DISGUISED = (
    "http://data.example@127.0.0.1/x.jsonl", "http://data.example:80@127.0.0.1/x.jsonl",
    "http://data.example%40127.0.0.1/x.jsonl", "http://127.0.0.1\\@data.example/x.jsonl",
    "http://data.example\t@127.0.0.1/x.jsonl", "http://127.0.0.1#@data.example/x.jsonl",
    "http://127.0.0.1?@data.example/x.jsonl", "http://data.example.127.0.0.1/x.jsonl", "http:127.0.0.1/x.jsonl",
    "http:///127.0.0.1/x.jsonl", "http://\uff11\uff12\uff17.0.0.1/x.jsonl", "http://127\u30020\u30020\u30021/x.jsonl",
    "http://data.example:99999/x.jsonl",
)  # fmt: skip
OTHER_SCHEMES = (
    "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "ftp://127.0.0.1/x.jsonl", "data:text/csv;base64,aWQ=",
    "zip://x.jsonl::http://127.0.0.1/x.zip", "simplecache::http://127.0.0.1/x.jsonl", "reference://?fo=http://127.0.0.1",
    "ssh://127.0.0.1/x.jsonl", "smb://127.0.0.1/share/x.jsonl",
)  # fmt: skip
URIS = (*(f"http://{host}/x.jsonl" for host in (*LOOPBACK, *INSIDE)), *DISGUISED, *OTHER_SCHEMES)
REDIRECTING = "10.99.0.1:8080"
ALLOWED = "10.99.0.1:8081"


@pytest.fixture
def closed() -> Iterator[Namespace]:
    """A namespace whose loopback also has the addresses that attacks aim at."""
    with ExitStack() as stack:
        near, _ = stack.enter_context(cabled())
        for address in (f"{METADATA}/32", f"{PRIVATE}/32", f"{PUBLIC}/32"):
            subprocess.run(["ip", "-n", near.name, "addr", "add", address, "dev", "lo"], check=True)
        yield near


def played(near: Namespace, folder: Path, **told: Any) -> dict[str, Any]:
    """What `guarded_reads` says of these uris."""
    listeners = [("0.0.0.0", 80, None), ("::1", 80, None), ("0.0.0.0", 6379, None), ("0.0.0.0", 21, None)]  # noqa: S104
    told = {
        "folder": str(folder),
        "permitted": {"schemes": ["file", "http", "https"], "hosts": [*LISTED, REDIRECTING, ALLOWED]},
        "canaries": [*listeners, ("10.99.0.1", 8080, "http://127.0.0.1/x.jsonl"), ("10.99.0.1", 8081, None)],
        "redirected": [],
        "allowed": [],
        "unguarded": False,
        **told,
    }
    process = near.start("tests.faults.guarded_reads", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        said, _ = process.communicate(json.dumps(told), timeout=PATIENCE_S)
    finally:
        process.kill()
    return json.loads(said)


def test_no_address_of_the_list_is_asked(closed: Namespace, tmp_path: Path, report: Callable[[str], None]) -> None:
    found = played(
        closed,
        tmp_path,
        uris=URIS,
        redirected=[f"http://{REDIRECTING}/x.jsonl"],
        allowed=[f"http://{ALLOWED}/x.jsonl"],
        unguarded=True,
    )
    guarded, redirected, allowed, bare = (found[p] for p in ("guarded", "redirected", "allowed", "unguarded"))
    refused = [uri for uri, said in guarded["outcomes"].items() if said.startswith("NotPermitted")]
    report(
        f"{len(URIS)} uris: {len(refused)} refused, {guarded['opened']} connections tried, {guarded['datagrams']} "
        f"datagrams sent; after a redirect to loopback {sum(redirected['caught'].values()) - 1} came; a listed address "
        f"{allowed['caught']}; without the guard {bare['opened']} connections tried, caught {bare['caught']}, "
        f"{sum('rows' in said for said in bare['outcomes'].values())} uris read"
    )
    assert len(URIS) >= 60
    assert {uri: said for uri, said in guarded["outcomes"].items() if uri not in refused} == {}
    assert all(" Fix: " in said for said in guarded["outcomes"].values())
    assert (guarded["opened"], guarded["datagrams"], guarded["caught"]) == (0, 0, {})
    assert redirected["caught"] == {REDIRECTING: 1}
    assert redirected["opened"] == 1
    (said,) = redirected["outcomes"].values()
    assert "redirect" in said
    assert allowed["caught"] == {ALLOWED: 1}, "the listeners do listen"
    assert (*allowed["outcomes"].values(),) == ("1 rows",)
    assert sum(bare["caught"].values()) > 10, "the same uris do harm where nobody guards"


def test_an_inner_address_is_not_asked_though_its_host_is_listed(
    closed: Namespace, tmp_path: Path, report: Callable[[str], None]
) -> None:
    hosts = [host.strip("[]") for host in (*LOOPBACK, *INSIDE)]
    uris = URIS[: len(hosts)]
    found = played(closed, tmp_path, uris=uris, permitted={"schemes": ["http"], "hosts": hosts})["guarded"]
    refused = [uri for uri, said in found["outcomes"].items() if "no public address" in said]
    report(
        f"{len(uris)} uris whose hosts are listed: {len(refused)} refused for their address, "
        f"{len(uris) - len(refused)} for how they are written; {found['opened']} connections tried"
    )
    assert all(said.startswith(("NotPermitted", "DatasetError")) for said in found["outcomes"].values())
    assert len(refused) > 30
    assert (found["opened"], found["caught"]) == (0, {})


def test_a_name_that_changes_after_the_check_leads_nowhere_else(
    closed: Namespace, tmp_path: Path, report: Callable[[str], None]
) -> None:
    found = played(closed, tmp_path, uris=[])["rebind"]
    (heads,) = found["heads"].values()
    report(f"looked up as {found['looked up']}: {found['outcomes']}; {len(heads)} connection, asked for {REBOUND}")
    assert found["looked up"] == [PUBLIC, "127.0.0.1"], "once an open, and only what was checked is asked"
    first, second = found["outcomes"]
    assert first == "1 rows"
    assert second.startswith("NotPermitted")
    assert len(heads) == 1
    assert f"host: {REBOUND}\r\n" in heads[0].lower()
