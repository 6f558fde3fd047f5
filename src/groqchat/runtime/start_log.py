"""The log lines that name the addresses of a service that has started."""

import logging
from contextlib import suppress
from ipaddress import ip_address

from groqchat.app import BASE_PATH

# Addresses of all interfaces, and one of them that a browser on this machine can open.
LOCAL_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

log = logging.getLogger("groqchat")


def http_address(host: str, port: int) -> str:
    """Return the URL of a host name or address, which may be IPv6, and a port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def log_addresses(host: str, port: int) -> None:
    """Log the addresses of the service, and a warning if other machines can reach them."""
    url = http_address(LOCAL_ADDRESS.get(host, host), port)
    log.info("groqchat answers at %s, documentation: %s/docs, API: %s%s/", url, url, url, BASE_PATH)
    if not _is_loopback(host):
        log.warning(
            "HOST=%s: other machines can reach the service, and it does not authenticate clients. "
            "Each of them can read and delete all sessions and use the Groq key. Put a reverse "
            "proxy that authenticates clients in front of it, see 'Reverse proxy and "
            "authentication' in docs/operations.md",
            host,
        )


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host.lower() == "localhost"
