"""Host names: which values of the Host header belong to the service."""

import logging
import re
from ipaddress import ip_address

from aiohttp import hdrs, web

from groqchat.errors import HostNotAllowed
from groqchat.http.log_once import LogOnce
from groqchat.settings import Settings

log = logging.getLogger(__name__)

ANY_HOST = "*"
LOOPBACK_NAME = "localhost"
# An address in brackets or a name, then an optional port.
HOST_HEADER = re.compile(r"(?:\[([^\]]+)\]|([\w-]+(?:\.[\w-]+)*\.?))(?::\d*)?", re.ASCII)
# Programs send such an address of this machine unchanged, browsers complete it.
SHORT_LOOPBACK = re.compile(r"127(?:\.\d{1,3}){1,2}", re.ASCII)
# Their responses contain no user data, and load balancers send names of their own.
HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
# More values than the names of a service, with and without a port.
MAX_REMEMBERED = 1000


class AllowedHosts:
    """The host names that a request may contain: loopback names, HOST and ALLOWED_HOSTS.

    A page can resolve its own name to the address of the service (DNS rebinding). The browser then
    treats the service as part of the page's origin. This does not work with an IP address, so each
    address is accepted.
    """

    def __init__(self, settings: Settings) -> None:
        lower = [name.lower() for name in settings.allowed_hosts]
        self._allows_all = ANY_HOST in lower
        self._names = {LOOPBACK_NAME, settings.host.lower(), *lower}
        self._root_path = settings.root_path
        suffixes = [name.removeprefix(ANY_HOST) for name in lower if name.startswith("*.")]
        self._suffixes = (f".{LOOPBACK_NAME}", *suffixes)
        self._log_once = LogOnce(log)
        # Header values that were accepted before. Only HTTP/1.0 programs send no Host header.
        self.accepted: set[str | None] = {None}

    def check(self, request: web.Request) -> None:
        """Raise HostNotAllowed unless the Host header belongs to the service."""
        header = request.headers.get(hdrs.HOST)
        path = request.path.removeprefix(self._root_path)
        if header in self.accepted or path in HEALTH_PATHS:
            return
        if not self._allows(header or ""):
            self._log_once.warning(
                header or "",
                "rejected a request for the host %s: ALLOWED_HOSTS does not contain it",
            )
            raise HostNotAllowed
        if len(self.accepted) < MAX_REMEMBERED:
            self.accepted.add(header)

    def _allows(self, header: str) -> bool:
        if self._allows_all:
            return True
        match = HOST_HEADER.fullmatch(header)
        if match is None:
            return False
        address, name = match.groups()
        if address is not None:
            return is_address(address)
        name = name.lower().removesuffix(".")
        if name in self._names or name.endswith(self._suffixes):
            return True
        return is_address(name) or SHORT_LOOPBACK.fullmatch(name) is not None


def is_address(text: str) -> bool:
    """Return whether a text is an IPv4 or IPv6 address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
