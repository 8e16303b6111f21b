"""Requests that are wrong in ways that a parser or a check may stumble over."""

import random
import time
from collections.abc import Iterator

from domain.triggers import Scheme
from tests.integration.receivers import Sender, updated


def heads(name: str, chance: random.Random) -> Iterator[bytes]:
    """Requests whose heads are wrong in ways that a parser or a check may stumble over."""
    good = b"POST /hooks/" + name.encode()
    body = updated()
    length = b"Content-Length: %d\r\n" % len(body)
    for signature in (b"v1", b"abc", b"v1,", b"v1,a,b", "v1,é".encode(), b"v1,\xff\xfe", b"v1," + b"A" * 9999, b","):
        yield (
            good
            + b" HTTP/1.1\r\nHost: x\r\nwebhook-id: x\r\nwebhook-timestamp: %d\r\n" % int(time.time())
            + b"webhook-signature: "
            + signature
            + b"\r\n"
            + length
            + b"\r\n"
            + body
        )
    for line in (
        b"",
        b"\r\n",
        b"\x00",
        b"POST",
        b"POST /",
        b"POST / HTTP/9.9",
        b"POST / HTTP/1.0",
        b"GET / HTTP/0.9",
        b"\xff\xfe /",
        good + b"\x00 HTTP/1.1",
        good + b"%00 HTTP/1.1",
        good + b"%ff%fe HTTP/1.1",
        "POST /hooks/é HTTP/1.1".encode(),
        b"POST //hooks//x HTTP/1.1",
        b"POST http://other/hooks/x HTTP/1.1",
        b"POST * HTTP/1.1",
        b"CONNECT x:1 HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        good + b"?" + b"a" * 70_000 + b" HTTP/1.1",
        b"POST /hooks/../../etc/passwd HTTP/1.1",
        b"POST /hooks/%2e%2e%2fsecrets HTTP/1.1",
        b"post / http/1.1",
        b"POST /hooks/%s HTTP/1.1" % (b"a" * 9000),
    ):
        yield line + b"\r\nHost: x\r\n" + length + b"\r\n" + body
    for field in (
        b"Content-Length: -1",
        b"Content-Length: 1e9",
        b"Content-Length: 99999999999999999999999",
        b"Content-Length:",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5, 5",
        b"Content-Length: \xb2",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding: chunked, chunked",
        b"Expect: 100-continue\r\nContent-Length: 99999999",
        b"Expect: what",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"no colon",
        b": no name",
        b"a b: c",
        b"x: \x00",
        b"x: \x7f\x01",
        b" folded: x",
        b"x: " + b"y" * 100_000,
        b"Host: y",
        b"Content-Encoding: gzip\r\nContent-Length: 3",
        b"Content-Type: \xff; charset=\xfe\r\nContent-Length: 3",
        b"\r\n".join(b"h%d: x" % n for n in range(3000)),
    ):
        yield good + b" HTTP/1.1\r\nHost: x\r\n" + field + b"\r\n\r\n" + body
    for chunk in (
        b"xyz\r\n",
        b"-1\r\n",
        b"ffffffffffffffffffff\r\n",
        b"5\r\nab",
        b"5\r\nabcdeXX",
        b"5;" + b"e" * 99_999,
        b"0\r\n\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"\x00\r\n",
        b"5\nabcde\n0\n\n",
    ):
        yield good + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
    for _ in range(40):
        yield chance.randbytes(chance.randrange(1, 2000))
    for _ in range(40):
        flipped = bytearray(good + b" HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n" + body)
        for _ in range(chance.randrange(1, 6)):
            flipped[chance.randrange(len(flipped))] = chance.randrange(256)
        yield bytes(flipped)


BODIES = (
    b"",
    b"\x00",
    b"null",
    b"[]",
    b"7",
    b'"x"',
    b"{",
    b"}",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": 1e999}',
    b"{}{}",
    b'{"a": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"a": 1, "a": 2}',
    b'{"a": "\\ud800"}',
    b'{"a": "\\u0000"}',
    b'{"type": "\\u0000", "data": {"dataset": "\\u0000"}}',
    b'{"data": [[[]]], "type": {}}',
    b'{"type": "headrace.dataset.updated", "data": {"dataset": "../../etc/passwd"}}',
    b'{"Records": [[], 7, {"s3": 7}]}',
    b'{"repository": 7, "ref": [], "commits": {}}',
    b'{"event": "x", "repo": [], "updatedRefs": 7}',
    b"\xef\xbb\xbf{}",
    b'{"event_type": "post-commit", "repository_id": "\\u0000", "branch_id": "\\ud800"}',
    b'{"entity": "\\u0000", "action": "created", "data": {"name": "\\ud800", "alias": "\\u0000"}}',
)
NOT_TEXT = (b"\xff\xfe", b'{"a": "\xed\xa0\x80"}', '{"a": 1}'.encode("utf-16"))


def bodies(senders: list[Sender]) -> Iterator[bytes]:
    """Requests of every scheme, rightly signed, whose bodies are wrong; and with a header twice."""
    for sender in senders:
        can_sign = sender.scheme not in (Scheme.STANDARD, Scheme.MLFLOW)
        for n, body in enumerate((*BODIES, *(NOT_TEXT if can_sign else ()))):
            fields = sender.signed(body, delivery_id=f"raw_{n}_{time.time_ns()}").items()
            lines = [f"{name}: {value}" for name, value in fields] * (2 if n == 2 else 1)
            head = [f"POST /hooks/{sender.name} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines]
            yield "\r\n".join([*head, "Connection: close", "", ""]).encode() + body
