"""Reverse proxies: the client's address and the public address of the service."""

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from aiohttp import hdrs, web

from groqchat.address_types import is_path_prefix

X_FORWARDED_PREFIX = "X-Forwarded-Prefix"
# An address with a port, which some proxies add.
WITH_PORT = re.compile(r"\[([^\]]+)\](?::\d+)?|([\d.]+):\d+")


class Proxies:
    """The proxies in front of the service: which are trusted, and which prefix they remove.

    A client can send X-Forwarded headers too, so those of other peers are ignored.
    """

    def __init__(self, trusted: Sequence[str], root_path: str) -> None:
        self._networks = [ip_network(network, strict=False) for network in trusted]
        self._root_path = root_path

    def is_trusted(self, address: str) -> bool:
        """Return whether an IP address belongs to a trusted proxy."""
        return bool(self._networks) and self._is_trusted(_parse(address))

    def client_address(self, request: web.BaseRequest) -> str | None:
        """Return the last address of the way to the service that is not a trusted proxy."""
        address = request.remote
        if not self._is_trusted(_parse(address or "")):
            return address
        for forwarded in _forwarded_addresses(request):
            parsed = _parse(forwarded)
            if parsed is None:
                return address
            address = str(parsed)
            if not self._is_trusted(parsed):
                return address
        return address

    def prefix(self, request: web.BaseRequest) -> str:
        """Return the prefix of all public paths, empty if there is none."""
        given = self._forwarded(request, X_FORWARDED_PREFIX).removesuffix("/")
        return given if is_path_prefix(given) else self._root_path

    def host(self, request: web.BaseRequest) -> str:
        """Return the public host, with its port unless it is the default."""
        return self._forwarded(request, hdrs.X_FORWARDED_HOST) or request.host

    def scheme(self, request: web.BaseRequest) -> str:
        """Return the public scheme, empty if no trusted proxy reports it."""
        return self._forwarded(request, hdrs.X_FORWARDED_PROTO)

    def _forwarded(self, request: web.BaseRequest, name: str) -> str:
        """Return the first value of a header that a trusted proxy sent."""
        value = request.headers.get(name, "")
        if not value or not self._is_trusted(_parse(request.remote or "")):
            return ""
        return value.partition(",")[0].strip()

    def _is_trusted(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


PROXIES = web.AppKey("proxies", Proxies)


def _forwarded_addresses(request: web.BaseRequest) -> Iterator[str]:
    """Yield the addresses of X-Forwarded-For, the nearest first."""
    # aiohttp's request for malformed HTTP has a plain dictionary without headers.
    all_of = getattr(request.headers, "getall", None)
    values = ",".join(all_of(hdrs.X_FORWARDED_FOR, ())) if all_of else ""
    return (part.strip() for part in reversed(values.split(",")))


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    match = WITH_PORT.fullmatch(text)
    try:
        address = ip_address((match[1] or match[2]) if match else text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    # A server that listens on an IPv6 socket sees IPv4 addresses in the first form. A scope id has
    # no meaning on another machine, and Python accepts any text as a scope id.
    return address.ipv4_mapped or IPv6Address(int(address))
