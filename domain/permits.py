"""Permits: what a uri names, and whether an address may be asked; decisions about text, nothing is opened here."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from urllib.parse import SplitResult, urlsplit

from domain.errors import NotPermitted, Place
from domain.triggers import Permitted

Address = IPv4Address | IPv6Address
LOCAL = "file"
WEB_PORTS = {"http": 80, "https": 443}
STORES = frozenset({"s3", "gs", "gcs", "az", "hf"})
"""Object stores: a uri of theirs names a bucket and a key, and no server."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BRACKETS = re.compile(r"^[A-Za-z]+://\[[0-9A-Fa-f:.]*\]")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_LONGEST = 200

# What `ipaddress` calls global and is not: special networks that were named later, and a cloud's own server.
_SPECIAL_4 = tuple(ip_network(n) for n in ("0.0.0.0/8", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))
_GLOBAL_6 = ip_network("2000::/3")
# Teredo and other protocols, documentation, and 6to4, which carries an IPv4 address. NAT64 and IPv4-mapped addresses
# are outside 2000::/3.
_SPECIAL_6 = tuple(ip_network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))


def shown(uri: str) -> str:
    """A uri as messages may show it: without user and password, without the query of a web address, and short."""
    if "://" in uri:
        uri = re.sub(r"://[^/]*@", "://***@", uri)
        uri = uri.partition("?")[0] if uri.lower().startswith("http") else uri
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in uri[:_LONGEST])


def refusal(uri: str, reason: str, fix: str) -> NotPermitted:
    """The error for a dataset that may not be opened."""
    return NotPermitted(Place(shown(uri), field="dataset"), reason, hint=fix)


def scheme_of(uri: str, permitted: Permitted) -> str:
    """The scheme under which a uri is opened, `file` for a plain path; raises NotPermitted."""
    if "::" in _BRACKETS.sub("", uri):
        raise refusal(uri, "chained addresses are not opened", "Name one file, without `::`.")
    found = _SCHEME.match(uri)
    scheme = found[1].lower() if found else LOCAL
    if scheme not in permitted.schemes:
        fix = f"Add {scheme} to permitted.schemes in triggers.yaml, or name a dataset of these: {_list(permitted)}."
        raise refusal(uri, f"the scheme {scheme} is not permitted", fix)
    if scheme not in {LOCAL, *WEB_PORTS, *STORES}:
        known = ", ".join(sorted({LOCAL, *WEB_PORTS, *STORES}))
        raise refusal(uri, f"nobody can guard the scheme {scheme}", f"Use one of: {known}.")
    return scheme


def _list(permitted: Permitted) -> str:
    return ", ".join(permitted.schemes) or "none"


def local_path(uri: str) -> str:
    """The path that a local uri names, taken literally: `%2e` is three characters; raises NotPermitted."""
    path = uri
    if _SCHEME.match(uri):
        host, slash, rest = uri[len(LOCAL) + 1 :].removeprefix("//").partition("/")
        if not uri[len(LOCAL) + 1 :].startswith("//") or not slash or host not in {"", "localhost"}:
            raise refusal(uri, "this is no local file", "Write file:///path or the path alone.")
        path = slash + rest
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise refusal(uri, "the path holds a control character", "Rename the file.")
    if ".." in path.split("/"):
        raise refusal(uri, "the path leads upwards", "Name the file without `..`.")
    return path


@dataclass(frozen=True, slots=True)
class Web:
    """A web address that may be asked: its host, in lower case; an address that was written as one is `address`.

    `exact` means that the operator listed this very address with its port: then it may be a private one.
    """

    scheme: str
    host: str
    port: int
    address: Address | None = None
    exact: bool = False

    @property
    def host_header(self) -> str:
        """The host as HTTP names it."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == WEB_PORTS[self.scheme] else f"{host}:{self.port}"


def web_address(uri: str, permitted: Permitted) -> Web:
    """What a web address asks, if its host is on the list; a host alone stands for the scheme's own port.

    Raises NotPermitted, also for what different programs read differently.
    """
    fix = "Write https://host/path in plain ASCII."
    if not uri.isascii() or _CONTROL.search(uri) or "\\" in uri:
        raise refusal(uri, "the address holds characters that no address has", fix)
    try:
        parts = urlsplit(uri)
        scheme, port = parts.scheme, parts.port
    except ValueError as error:
        raise refusal(uri, "this is no web address", fix) from error
    if "@" in parts.netloc:
        raise refusal(uri, "the address holds a user name", "Leave user and password out of it.")
    host = (parts.hostname or "").removesuffix(".")
    if not uri.lower().startswith(f"{scheme}://") or not host:
        raise refusal(uri, "the address names no host", fix)
    try:
        address = read_address(host)
    except ValueError as error:
        raise refusal(uri, f"the host is a number and no address: {error}", fix) from error
    port = WEB_PORTS[scheme] if port is None else port
    return _listed(uri, parts, Web(scheme, host if address is None else str(address), port, address), permitted)


def _listed(uri: str, parts: SplitResult, web: Web, permitted: Permitted) -> Web:
    for entry in permitted.hosts:
        name, port = _entry(entry)
        try:
            same = name == web.host if web.address is None else read_address(name) == web.address
        except ValueError:
            same = False
        if same and web.port == (WEB_PORTS[web.scheme] if port is None else port):
            return Web(web.scheme, web.host, web.port, web.address, exact=port is not None and web.address is not None)
    raise refusal(
        uri,
        f"the host {parts.hostname}, port {web.port}, is not permitted",
        f"Add {web.host_header} to permitted.hosts in triggers.yaml if you mean it.",
    )


def _entry(entry: str) -> tuple[str, int | None]:
    """A host of the list and its port."""
    try:
        parts = urlsplit(f"//{entry}" if entry.count(":") < 2 or entry.startswith("[") else f"//[{entry}]")
        return (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        return "", None


def read_address(host: str) -> Address | None:
    """The IP address that a host is written as, in any way that C libraries understand; None for a name.

    Parts may be decimal, octal or hexadecimal, and fewer than four: 127.1, 0x7f000001, 2130706433. Raises ValueError
    for what ends in a number and is no address.
    """
    if ":" in host:
        if "%" in host:
            raise ValueError("it names a network interface")
        return IPv6Address(host)
    labels = host.removesuffix(".").split(".")
    if not _NUMBER.fullmatch(labels[-1]):
        return None
    if len(labels) > 4:
        raise ValueError(f"{len(labels)} numbers")
    *leading, last = (_number(label) for label in labels)
    if any(part > 255 for part in leading) or last >= 256 ** (4 - len(leading)):
        raise ValueError("a number is too large")
    return IPv4Address(sum(part << (24 - 8 * n) for n, part in enumerate(leading)) + last)


def _number(label: str) -> int:
    if not _NUMBER.fullmatch(label):
        raise ValueError(f"{label!r} is no number")
    if label[:2].lower() == "0x":
        return int(label[2:] or "0", 16)
    return int(label, 8 if label.startswith("0") and label != "0" else 10)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open Internet.

    Loopback, private, shared, link-local, multicast, reserved and documentation networks do not, nor do the forms of
    IPv6 that carry an IPv4 address: mapped, compatible, 6to4, Teredo, NAT64.
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in net for net in _SPECIAL_4)
    return address.scope_id is None and address in _GLOBAL_6 and not any(address in net for net in _SPECIAL_6)
