"""Origins: which web pages may send requests that change something."""

import logging
from collections.abc import Sequence

from aiohttp import hdrs, web

from groqchat.address_types import ANY_ORIGIN
from groqchat.errors import CrossSiteRequest
from groqchat.http.log_once import LogOnce
from groqchat.http.proxies import Proxies

log = logging.getLogger(__name__)

SEC_FETCH_SITE = "Sec-Fetch-Site"
# The values for a page of the service itself, and for a request that no page caused.
OWN_SITES = frozenset({"same-origin", "none"})
SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
# A browser sends this origin for a sandboxed frame, a local file and some redirects.
OPAQUE_ORIGIN = "null"


class AllowedOrigins:
    """The origins whose pages may call the API, besides the service's own origin.

    CORS only prevents pages from reading responses. A browser sends a simple POST request of any
    page without asking first.
    """

    def __init__(self, origins: Sequence[str], proxies: Proxies) -> None:
        self._origins = frozenset(origins)
        self._proxies = proxies
        self._log_once = LogOnce(log)

    def allows(self, origin: str) -> bool:
        """Return whether CORS_ALLOWED_ORIGINS contains an origin."""
        return origin in self._origins or ANY_ORIGIN in self._origins

    def check(self, request: web.Request) -> None:
        """Raise CrossSiteRequest if a page that is not allowed wants to change something."""
        origin = request.headers.get(hdrs.ORIGIN)
        if self.allows(origin or "") or self._is_own(request, origin):
            return
        if origin is not None:
            self._log(origin)
        if request.method not in SAFE_METHODS:
            raise CrossSiteRequest

    def _log(self, origin: str) -> None:
        message = "blocked a page of the origin %s: CORS_ALLOWED_ORIGINS does not contain it"
        if origin == OPAQUE_ORIGIN:
            message = "blocked a page of the origin %s: only CORS_ALLOWED_ORIGINS=* allows it"
        self._log_once.warning(origin, message)

    def _is_own(self, request: web.Request, origin: str | None) -> bool:
        """Return whether a request comes from the service's own origin, or from no page.

        Browsers send Sec-Fetch-Site over HTTPS and to loopback addresses. It stays correct behind a
        proxy that changes the Host header.
        """
        site = request.headers.get(SEC_FETCH_SITE)
        if site is not None:
            return site in OWN_SITES
        if origin is None:
            return True
        scheme, _, host = origin.lower().partition("://")
        # An unknown proxy that ends TLS changes the scheme.
        is_own_scheme = scheme == (self._proxies.scheme(request).lower() or scheme)
        return is_own_scheme and host == self._proxies.host(request).lower()
