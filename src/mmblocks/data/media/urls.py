"""Images and videos of the web, where the user allows them: limited in time, size and redirects, and of public hosts only.

The address is checked and then connected to, so that a name cannot point elsewhere in between. Proxies are not used.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from mmblocks import __version__
from mmblocks.errors import DataError

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that stand for IPv4 addresses, private ones too."""


@dataclass(frozen=True, slots=True)
class UrlLimits:
    """What fetching may take: seconds in all, bytes of the content, redirects."""

    seconds: float = 30.0
    bytes: int = 256_000_000
    redirects: int = 5


def is_web_url(source: object) -> bool:
    """Whether a source is a URL of http or https."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch_url(url: str, private_hosts: Collection[str] = (), limits: UrlLimits | None = None) -> bytes:
    """The content of a URL.

    private_hosts: names of hosts that may have private, loopback or link-local addresses. Raises `DataError` for what is
    refused, unreachable or over the limits.
    """
    limits = UrlLimits() if limits is None else limits
    deadline, place = time.monotonic() + limits.seconds, url
    for _ in range(limits.redirects + 1):
        try:
            content = _request(place, private_hosts, limits, deadline)
        except (OSError, http.client.HTTPException, ValueError) as cause:
            late = isinstance(cause, TimeoutError)
            reason = f"it takes more than {limits.seconds:g} s" if late else str(cause) or type(cause).__name__
            raise DataError(f"{url}: cannot be fetched ({reason}); download it and pass its path.") from cause
        if isinstance(content, bytes):
            return content
        place = urljoin(place, content)
    raise DataError(f"{url}: more than {limits.redirects} redirects; pass the address that it leads to.")


def _request(url: str, private_hosts: Collection[str], limits: UrlLimits, deadline: float) -> bytes | str:
    """The content of one address, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise DataError(f"{url}: only http and https are fetched.")
    connection = _connect(parts, private_hosts, deadline)
    try:
        path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        connection.request(
            "GET", path, headers={"User-Agent": f"mmblocks/{__version__}", "Accept-Encoding": "identity"}
        )
        response = connection.getresponse()
        if response.status in _REDIRECTS and (location := response.getheader("Location")):
            return location
        if response.status != 200:
            raise DataError(f"{url}: the server answers {response.status} {response.reason}; open it in a browser.")
        return _read_body(response, url, limits, deadline)
    finally:
        connection.close()


def _read_body(response: http.client.HTTPResponse, url: str, limits: UrlLimits, deadline: float) -> bytes:
    content = bytearray()
    announced = int(response.getheader("Content-Length") or 0)
    while announced <= limits.bytes and (piece := response.read1(_CHUNK)):
        content += piece
        _remaining_seconds(deadline)  # a server may send a byte at a time
        if len(content) > limits.bytes:
            break
    if max(announced, len(content)) > limits.bytes:
        raise DataError(f"{url}: more than {limits.bytes:,} bytes; download it and pass its path.")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(content)


def _connect(parts: SplitResult, private_hosts: Collection[str], deadline: float) -> http.client.HTTPConnection:
    """A connection to a checked address of the host."""
    host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
    addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    public = [address for address in addresses if host in private_hosts or is_public_address(address)]
    if not public:
        raise DataError(
            f"{parts.geturl()}: {host} is {addresses[0]}, a private address, which is not fetched; allow the host by name."
        )
    link = socket.create_connection((public[0], port), timeout=_remaining_seconds(deadline))
    if parts.scheme == "https":
        link = ssl.create_default_context().wrap_socket(link, server_hostname=host)
    connection = http.client.HTTPConnection(host, port)
    connection.sock = link
    return connection


def is_public_address(address: str) -> bool:
    """Whether an IP address belongs to the public internet: not private, loopback, link-local, multicast or in disguise."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inside = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo and parsed.teredo[1])
        if inside or parsed in _TRANSLATED:
            return bool(inside) and is_public_address(str(inside))
    return parsed.is_global and not parsed.is_multicast


def _remaining_seconds(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
