"""Asking the web for a dataset: the address is checked once and asked itself, whatever its name stands for later."""

import asyncio
import socket
import ssl
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from typing import BinaryIO, TypeVar, cast

import httpx
from pydantic import JsonValue

from domain.errors import DatasetError, DatasetUnreachable, Place
from domain.permits import Web, is_public, refusal, shown, web_address
from domain.triggers import Permitted

T = TypeVar("T")
Resolve = Callable[[str, int], Sequence[str]]
SILENCE_S = 30.0
CHANGE_SIGNS = ("etag", "last-modified", "content-length")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one fetch may take: bytes of the file, and seconds altogether."""

    most_bytes: int = 4 * 2**30
    total_s: float = 600.0


LIMITS = Limits()


def resolve(host: str, port: int) -> list[str]:
    """The addresses that a name stands for now; raises OSError."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def run_apart(work: Coroutine[object, object, T]) -> T:
    """Carry a coroutine out in a thread of its own, so that callers may have a loop that runs already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def checked_addresses(uri: str, web: Web, resolver: Resolve) -> list[str]:
    """The addresses to connect to: the name is looked up once, and all that it stands for must be public.

    Raises NotPermitted, and DatasetError for a name that nobody knows.
    """
    if web.address is not None:
        found = [str(web.address)]
    else:
        try:
            found = list(dict.fromkeys(resolver(web.host, web.port)))
        except (OSError, UnicodeError) as error:
            raise DatasetUnreachable(Place(shown(uri)), f"its host is not known: {error}"[:300]) from error
    if not found:
        raise DatasetError(Place(shown(uri)), "its host has no address")
    for address in found:
        if not web.exact and not is_public(ip_address(address)):
            raise refusal(
                uri,
                f"the host stands for {address}, which is no public address",
                f"If you mean it, write the address itself into the uri and {_exact(address, web.port)} into "
                "permitted.hosts of triggers.yaml.",
            )
    return found


def _exact(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def fetch(uri: str, permitted: Permitted, *, resolver: Resolve = resolve, limits: Limits = LIMITS) -> BinaryIO:
    """What a web address holds, as a temporary file that goes away when it is closed.

    No redirect is followed, no proxy or password of the environment is used. Raises NotPermitted and DatasetError.
    """
    web = web_address(uri, permitted)
    addresses = checked_addresses(uri, web, resolver)
    file = cast(BinaryIO, tempfile.TemporaryFile("w+b"))  # noqa: SIM115 (its reader closes it)
    try:
        _ask("GET", uri, web, addresses, limits, file)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def signs(uri: str, permitted: Permitted, *, resolver: Resolve = resolve, limits: Limits = LIMITS) -> list[JsonValue]:
    """What tells one state of a web file from another: ETag, Last-Modified and length, asked for without the file.

    Raises NotPermitted and DatasetError, also when the server says none of them.
    """
    web = web_address(uri, permitted)
    headers = _ask("HEAD", uri, web, checked_addresses(uri, web, resolver), limits, None)
    found: list[JsonValue] = [headers.get(name, "") for name in CHANGE_SIGNS]
    if not any(found):
        raise DatasetError(
            Place(shown(uri)),
            "the server says nothing by which a change could be told",
            hint="It would have to send ETag or Last-Modified; else leave poll_s out and send a webhook.",
        )
    return found


def _ask(
    method: str, uri: str, web: Web, addresses: Sequence[str], limits: Limits, into: BinaryIO | None
) -> httpx.Headers:
    try:
        return run_apart(_exchange(method, uri, web, addresses, limits, into))
    except TimeoutError as error:
        reason = f"it did not answer as a whole in {limits.total_s:g} seconds"
        raise DatasetUnreachable(Place(shown(uri)), reason) from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        reason = f"it cannot be fetched: {type(error).__name__}: {error}"
        raise DatasetUnreachable(Place(shown(uri)), reason[:300]) from error


async def _exchange(
    method: str, uri: str, web: Web, addresses: Sequence[str], limits: Limits, into: BinaryIO | None
) -> httpx.Headers:
    # `trust_env`: no proxy, no .netrc. The authorities are the system's, so that SSL_CERT_FILE still counts.
    verify = ssl.create_default_context()
    async with (
        asyncio.timeout(limits.total_s),
        httpx.AsyncClient(trust_env=False, follow_redirects=False, verify=verify, timeout=SILENCE_S) as client,
    ):
        response = await _connect(client, method, uri, web, addresses)
        try:
            _refuse_others(uri, response, limits)
            if into is not None:
                await _copy(uri, response, limits, into)
        finally:
            await response.aclose()
        return response.headers


async def _connect(
    client: httpx.AsyncClient, method: str, uri: str, web: Web, addresses: Sequence[str]
) -> httpx.Response:
    """The beginning of an answer from the first of the checked addresses that takes a connection."""
    headers = {"Host": web.host_header, "Accept-Encoding": "identity", "User-Agent": "headrace"}
    for n, address in enumerate(addresses, start=1):
        # The address stands in the URL, so that nobody looks the name up again; certificates are checked for the name.
        url = httpx.URL(uri).copy_with(host=address)
        request = client.build_request(method, url, headers=headers, extensions={"sni_hostname": web.host})
        try:
            return await client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if n == len(addresses):
                raise
    raise AssertionError("there is at least one address")


def _refuse_others(uri: str, response: httpx.Response, limits: Limits) -> None:
    if response.is_redirect or 300 <= response.status_code < 400:
        raise refusal(uri, "it answers with a redirect, which is not followed", "Write the address that it leads to.")
    if response.status_code != 200:
        passing = response.status_code in {408, 425, 429} or response.status_code >= 500
        kind = DatasetUnreachable if passing else DatasetError
        raise kind(Place(shown(uri)), f"it answers with status {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise DatasetError(Place(shown(uri)), "it is sent packed, though nobody asked for that")
    if int(length if (length := response.headers.get("content-length", "0")).isdigit() else 0) > limits.most_bytes:
        raise _too_long(uri, limits)


async def _copy(uri: str, response: httpx.Response, limits: Limits, into: BinaryIO) -> None:
    read = 0
    async for part in response.aiter_raw():
        read += len(part)
        if read > limits.most_bytes:
            raise _too_long(uri, limits)
        into.write(part)


def _too_long(uri: str, limits: Limits) -> DatasetError:
    return DatasetError(Place(shown(uri)), f"it is longer than {limits.most_bytes:,} bytes")
