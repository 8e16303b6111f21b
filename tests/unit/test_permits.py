"""Permits: which addresses are public, which uris may be opened, and which local paths stay inside."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import httpx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from domain.errors import DatasetError, DatasetUnreachable, NotPermitted
from domain.permits import is_public, local_path, read_address, scheme_of, shown, web_address
from domain.triggers import Permitted
from infra.fetching import Limits, checked_addresses, fetch, signs
from infra.llm.addresses import is_loopback
from infra.object_stores import stored_files
from infra.permits import permitted_files
from infra.reading import ReadRow, read_rows

LINE = b'{"id": "1", "text": "inside"}\n'
FILES = Permitted()


@pytest.mark.parametrize(
    "written",
    [
        "127.0.0.1", "127.1", "127.0.1", "0x7f.1", "0x7f000001", "0X7F.0.0.1", "2130706433", "017700000001",
        "0177.0.0.1",
        "127.0.0.1.",
    ],
)  # fmt: skip
def test_loopback_is_understood_however_it_is_written(written: str) -> None:
    assert read_address(written) == ip_address("127.0.0.1")


@pytest.mark.parametrize("name", ["example.com", "127.0.0.1.example.com", "localhost", "0x7f.one", "a1"])
def test_names_are_no_addresses(name: str) -> None:
    assert read_address(name) is None


@pytest.mark.parametrize("bad", ["1.2.3.4.5", "256.1.1.1", "4294967296", "1..2", "08.1.1.1", "fe80::1%eth0", ":::"])
def test_numbers_that_are_no_addresses_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_address(bad)


@pytest.mark.parametrize(
    "address",
    [
        "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "168.63.129.16", "169.254.169.254",
        "172.16.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.1.1.1",
        "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
        "2002:7f00:1::", "2002:808:808::", "2001::1", "2001:db8::1", "3fff::1", "64:ff9b::7f00:1", "64:ff9b::808:808",
        "64:ff9b:1::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "100::1", "5f00::1",
    ],
)  # fmt: skip
def test_what_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "192.0.1.1", "2606:4700:4700::1111", "2a00:1450::1"])
def test_what_is_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_only_listed_schemes_and_never_those_that_nobody_can_guard() -> None:
    assert scheme_of("data/*.jsonl", FILES) == "file"
    assert scheme_of("s3://bucket/x.csv", Permitted(schemes=("s3",))) == "s3"
    everything = Permitted(schemes=("file", "https", "gopher", "ftp", "data", "zip", "reference", "memory", "local"))
    for uri in ("https://x/y.csv", "ftp://x/y.csv", "S3://b/x.csv"):
        with pytest.raises(NotPermitted, match="scheme"):
            scheme_of(uri, FILES)
    for scheme in ("gopher", "ftp", "data", "zip", "reference", "memory", "local"):
        with pytest.raises(NotPermitted, match="nobody can guard"):
            scheme_of(f"{scheme}://x/y.csv", everything)
    for chained in ("zip://x.csv::file:///etc/x.zip", "simplecache::https://x/y.csv", "https://[::1]/a::file:///b"):
        with pytest.raises(NotPermitted, match="chained"):
            scheme_of(chained, everything)


def test_local_uris_are_taken_literally() -> None:
    assert local_path("a/%2e%2e/b.jsonl") == "a/%2e%2e/b.jsonl"
    assert local_path("file:///data/x.csv") == local_path("file://localhost/data/x.csv") == "/data/x.csv"
    for bad in ("../x", "a/../../x", "file:///a/../b", "file://server/x", "file:x", "a\0b", "a\nb"):
        with pytest.raises(NotPermitted):
            local_path(bad)


def test_a_host_alone_stands_for_the_schemes_own_port() -> None:
    listed = Permitted(schemes=("http", "https"), hosts=("example.com", "example.org:8443", "10.0.0.5:9000"))
    assert web_address("https://EXAMPLE.com./x.csv", listed).host_header == "example.com"
    assert web_address("https://example.org:8443/x", listed).host_header == "example.org:8443"
    assert web_address("http://167772165:9000/x", listed).exact, "the same address in another spelling"
    for uri in (
        "https://example.com:8443/x", "https://example.org/x", "http://10.0.0.5/x", "https://example.com@evil.org/x",
        "https://evil.org\\@example.com/x", "https://example.com%00.evil.org/x", "https://evilexample.com/x",
        "https://example.com.evil.org/x", "https:///x", "https:example.com", "https://\u0435xample.com/x",
        "https://example.com /",
        "https://example.com:99999/x", "https://256.0.0.1/x",
    ):  # fmt: skip
        with pytest.raises(NotPermitted):
            web_address(uri, listed)


def test_every_address_of_a_name_has_to_be_public() -> None:
    listed = Permitted(schemes=("https",), hosts=("example.com", "127.0.0.1", "127.0.0.1:8443"))
    web = web_address("https://example.com/x", listed)

    def answers(*found: str) -> Any:
        return lambda _host, _port: found

    assert checked_addresses("u", web, answers("1.1.1.1", "2606:4700::1")) == ["1.1.1.1", "2606:4700::1"]
    with pytest.raises(NotPermitted, match=r"10\.0\.0\.1.*permitted\.hosts"):
        checked_addresses("u", web, answers("1.1.1.1", "10.0.0.1"))
    with pytest.raises(DatasetError):
        checked_addresses("u", web, answers())
    with pytest.raises(NotPermitted):
        checked_addresses("u", web_address("https://127.0.0.1/x", listed), answers())
    assert checked_addresses("u", web_address("https://127.1:8443/x", listed), answers()) == ["127.0.0.1"]


def test_messages_hold_no_password_and_no_signed_query() -> None:
    assert shown("https://user:secret@host/x.csv?sig=secret") == "https://***@host/x.csv"
    assert "\0" not in shown("a\0b")


class Answers(BaseHTTPRequestHandler):
    """A server that answers by path."""

    def do_GET(self) -> None:
        self._answer(LINE)

    def do_HEAD(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.server.seen.append((self.command, self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        self.send_response(302 if self.path == "/moved.jsonl" else 404 if self.path == "/gone.jsonl" else 200)
        if self.path == "/moved.jsonl":
            self.send_header("Location", "/rows.jsonl")
        if self.path != "/unsigned.jsonl":
            self.send_header("ETag", '"1"')
        if self.path == "/packed.jsonl":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body * (100 if self.path == "/long.jsonl" else 1))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """host:port of a server on loopback, and what it was asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as served:
        served.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{served.server_address[1]}", served.seen  # type: ignore[attr-defined]
        served.shutdown()


def test_a_web_file_is_read_from_the_listed_address(server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    host, seen = server
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    permitted = Permitted(schemes=("http",), hosts=(host,))
    rows = list(read_rows(f"http://{host}/rows.jsonl", Path("/nowhere"), permitted))
    assert [row.raw for row in rows if isinstance(row, ReadRow)] == [{"id": "1", "text": "inside"}]
    assert seen == [("GET", "/rows.jsonl", host)]
    assert signs(f"http://{host}/rows.jsonl", permitted)[0] == '"1"'
    with pytest.raises(NotPermitted, match="redirect"):
        fetch(f"http://{host}/moved.jsonl", permitted)
    with pytest.raises(DatasetError, match="404"):
        fetch(f"http://{host}/gone.jsonl", permitted)
    with pytest.raises(DatasetError, match="packed"):
        fetch(f"http://{host}/packed.jsonl", permitted)
    with pytest.raises(DatasetError, match="longer than 200 bytes"):
        fetch(f"http://{host}/long.jsonl", permitted, limits=Limits(most_bytes=200))
    with pytest.raises(DatasetError, match="nothing by which"):
        signs(f"http://{host}/unsigned.jsonl", permitted)


def test_a_server_that_never_finishes_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        stop = threading.Event()

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        try:
            with pytest.raises(DatasetError, match="as a whole in"):
                fetch(f"http://{host}/x", Permitted(schemes=("http",), hosts=(host,)), limits=Limits(total_s=0.5))
        finally:
            stop.set()
            thread.join(5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workload's folder with rows in it and around it."""
    inside = tmp_path / "inside"
    (inside / "data" / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for path in ("inside/rows.jsonl", "inside/data/a.jsonl", "inside/data/b.jsonl", "inside/data/deep/c.jsonl"):
        (tmp_path / path).write_bytes(LINE)
    (tmp_path / "outside" / "x.jsonl").write_bytes(LINE)
    return inside


def names(uri: str, folder: Path, permitted: Permitted = FILES) -> list[str]:
    return [file.name for file in permitted_files(uri, folder, permitted)]


@pytest.mark.parametrize("uri", ["rows.jsonl", "data/*.jsonl", "data/[ab].jsonl", "**/*.jsonl", "data/**/c.jsonl"])
def test_a_guarded_dataset_reads_and_is_named_as_an_unguarded_one(folder: Path, uri: str) -> None:
    for address in (uri, str(folder / uri), f"file://{folder}/{uri}"):
        guarded = [row.place for row in read_rows(address, folder, FILES) if isinstance(row, ReadRow)]
        assert guarded == [row.place for row in read_rows(address, folder) if isinstance(row, ReadRow)]
        assert guarded


def test_links_are_followed_inside_and_refused_where_they_lead_out(folder: Path) -> None:
    os.symlink("data/a.jsonl", folder / "near.jsonl")
    os.symlink(folder / "data", folder / "absolute")
    os.symlink("../rows.jsonl", folder / "data" / "up.jsonl")
    os.symlink("../outside/x.jsonl", folder / "away.jsonl")
    os.symlink("/etc", folder / "etc")
    os.symlink("round.jsonl", folder / "round.jsonl")
    for uri in ("near.jsonl", "absolute/b.jsonl", "data/up.jsonl"):
        assert [row.raw for row in read_rows(uri, folder, FILES) if isinstance(row, ReadRow)]
    for uri in ("away.jsonl", "etc/passwd", "etc/*", "*.jsonl"):
        with pytest.raises(NotPermitted, match=r"outside.*permitted\.roots"):
            permitted_files(uri, folder, FILES)
    with pytest.raises(DatasetError, match="symbolic links"):
        permitted_files("round.jsonl", folder, FILES)


def test_roots_replace_the_workloads_own_folder(folder: Path) -> None:
    outside = folder.parent / "outside"
    assert names(str(outside / "*.jsonl"), folder, Permitted(roots=(str(outside),))) == [str(outside / "x.jsonl")]
    with pytest.raises(NotPermitted):
        permitted_files("rows.jsonl", folder, Permitted(roots=(str(outside),)))
    os.symlink(outside, folder.parent / "alias")
    assert names(str(folder.parent / "alias" / "x.jsonl"), folder, Permitted(roots=("../alias",)))


def test_a_file_that_is_swapped_after_the_look_is_checked_again(folder: Path) -> None:
    (found,) = permitted_files("rows.jsonl", folder, FILES)
    before = found.state()
    (folder / "rows.jsonl").unlink()
    os.symlink("/etc/hostname", folder / "rows.jsonl")
    with pytest.raises(NotPermitted):
        found.open()
    (folder / "rows.jsonl").unlink()
    os.mkfifo(folder / "rows.jsonl")
    with pytest.raises(NotPermitted, match="no regular file"):
        found.open()
    (folder / "rows.jsonl").unlink()
    (folder / "rows.jsonl").write_bytes(LINE)
    assert found.state() != before
    with found.open() as stream:
        assert stream.read() == LINE


def test_what_is_missing_is_no_refusal(folder: Path) -> None:
    missing: Sequence[str] = ("nothing.jsonl", "nothing/*.jsonl", "rows.jsonl/x", "*.csv", "*/nothing.jsonl")
    for uri in missing:
        assert permitted_files(uri, folder, FILES) == []
        with pytest.raises(DatasetError, match="no such file"):
            list(read_rows(uri, folder, FILES))


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://127.0.0.1:8000/v1", True), ("http://127.4.3.2/v1", True), ("http://[::1]:1/v1", True),
        ("http://localhost:1/v1", True), ("http://127.evil.example/v1", False), ("http://127.0.0.1.example/v1", False),
        ("http://192.0.2.1/v1", False), ("/v1", False),
    ],
)  # fmt: skip
def test_a_name_that_begins_like_loopback_is_not_this_machine(url: str, near: bool) -> None:
    assert is_loopback(url) is near


class Flaky(MemoryFileSystem):
    """An object store of this process that fails at what it is told to, as one does whose network is away."""

    protocol = "gcs"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fails: ClassVar[str] = ""
    waits: ClassVar[threading.Event] = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gcs://").strip("/")

    def _fail(self, at: str) -> None:
        if type(self).fails == at:
            raise httpx.ConnectError("nobody is there")

    def info(self, path: str, **named: Any) -> Any:
        self._fail("info")
        if type(self).fails == "silence":
            type(self).waits.wait(60)
        return super().info(path, **named)

    def open(self, path: str, *given: Any, **named: Any) -> Any:
        self._fail("open")
        return _Broken() if type(self).fails == "read" else super().open(path, *given, **named)

    def checksum(self, path: str) -> int:
        self._fail("checksum")
        return 1


class _Broken:
    """A file whose connection is lost."""

    def read(self, _size: int = -1) -> bytes:
        raise httpx.ReadError("it is gone")

    def close(self) -> None:
        pass


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("gcs", Flaky, clobber=True)
    Flaky.waits.clear()
    Flaky().pipe_file("/bucket/a.jsonl", LINE)
    yield Flaky
    Flaky.fails = ""
    Flaky.waits.set()


@pytest.mark.parametrize("at", ["info", "open", "read", "checksum"])
def test_whatever_the_library_of_a_store_raises_is_an_outage_that_passes(flaky: type[Flaky], at: str) -> None:
    allowed = Permitted(schemes=("gcs",))
    assert [row.raw["id"] for row in read_rows("gcs://bucket/a.jsonl", Path(), allowed) if isinstance(row, ReadRow)]
    flaky.fails = at

    def look_and_read() -> None:
        for file in permitted_files("gcs://bucket/a.jsonl", Path(), allowed):
            file.state()
            file.open().read(1)

    with pytest.raises(DatasetUnreachable, match="Error: "):
        look_and_read()


def test_a_store_that_says_nothing_is_not_waited_for_for_ever(flaky: type[Flaky]) -> None:
    flaky.fails = "silence"
    with pytest.raises(DatasetUnreachable, match=r"more than 0\.05 seconds"):
        stored_files("gcs://bucket/a.jsonl", total_s=0.05)


def test_a_store_without_the_file_is_no_outage(flaky: type[Flaky]) -> None:
    assert stored_files("gcs://bucket/b.jsonl") == []
    assert stored_files("gcs://bucket/b*.jsonl") == []
