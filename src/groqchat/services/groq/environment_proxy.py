"""The proxy that the environment names for the connections to Groq."""

import logging
from ipaddress import ip_address
from urllib.request import getproxies_environment, proxy_bypass

from yarl import URL

from groqchat.errors import ConfigurationError

# aiohttp supports no SOCKS proxy.
PROXY_SCHEMES = ("http", "https")
# The variable for each scheme of the base URL, and the one for both; also in lower case.
VARIABLES = {"https": "HTTPS_PROXY", "http": "HTTP_PROXY", "all": "ALL_PROXY"}

log = logging.getLogger(__name__)


def proxy_of_environment(base_url: str) -> URL | None:
    """Return and log the URL of the proxy for a base URL, None for a direct connection.

    `NO_PROXY` is a list of host names, domains and addresses that need no proxy. A loopback
    address, such as that of the mock Groq server, never needs one.
    """
    target = URL(base_url)
    host = target.host or ""
    proxies = getproxies_environment()
    if _is_loopback(host) or proxy_bypass(f"{host}:{target.port}"):
        return None
    for name in (target.scheme, "all"):
        if value := proxies.get(name):
            proxy = _parse(VARIABLES[name], value)
            # Without the credentials.
            log.info("[Groq] through the proxy at %s:%d", proxy.host, proxy.port)
            return proxy
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(variable: str, value: str) -> URL:
    """Parse the URL of a proxy; an error does not repeat it, because it may contain a password."""
    try:
        # As curl does, assume HTTP if there is no scheme.
        proxy = URL(value if "://" in value else f"http://{value}")
        is_valid = bool(proxy.host) and proxy.port is not None
    except ValueError:
        raise ConfigurationError(f"{variable} is not a valid URL") from None
    if proxy.scheme not in PROXY_SCHEMES:
        raise ConfigurationError(
            f"{variable}: {proxy.scheme}:// is not supported, only http:// and https://. "
            "NO_PROXY can exclude the host of GROQ_BASE_URL."
        )
    if not is_valid:
        raise ConfigurationError(f"{variable} is not a valid URL")
    if not _fit_a_header(proxy.user or "", proxy.password or ""):
        raise ConfigurationError(
            f"{variable}: the credentials must be Latin-1, and the user name without a colon"
        )
    return proxy


def _fit_a_header(user: str, password: str) -> bool:
    """Return whether aiohttp can send credentials to a proxy."""
    try:
        f"{user}:{password}".encode("latin-1")
    except UnicodeEncodeError:
        return False
    return ":" not in user
