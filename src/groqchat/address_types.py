"""The types of settings that contain hosts, origins, networks or a path prefix."""

import re
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode
from yarl import URL

ANY_ORIGIN = "*"
# The slash at the end is a common mistake.
ORIGIN = re.compile(r"https?://[a-z0-9_.\-\[\]:]+/?", re.ASCII | re.IGNORECASE)
# A name, a wildcard for the subdomains of a name, or an IP address, without a port.
HOST_NAME = re.compile(
    r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]|[0-9a-f]*:[0-9a-f.]*:[0-9a-f:.]*",
    re.IGNORECASE,
)
# A name as the domain name system contains it.
DNS_NAME = re.compile(rb"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?", re.IGNORECASE)
# Segments that a URL contains unescaped. `.` and `..` would change the path.
PATH_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
# Longer than the prefix of any service.
MAX_PREFIX_CHARS = 200


def split_list(value: object) -> object:
    """Split a text at its commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def is_host(host: str) -> bool:
    """Return whether a text is an IP address, or a name that can be looked up."""
    with suppress(ValueError):
        return bool(ip_address(host))
    try:
        return DNS_NAME.fullmatch(host.encode("idna")) is not None
    except UnicodeError:
        return False


def is_path_prefix(path: str) -> bool:
    """Return whether a path can precede all paths of the service."""
    return len(path) <= MAX_PREFIX_CHARS and PATH_PREFIX.fullmatch(path) is not None


def _normalize_host(host: str) -> str:
    """Return a host without white space around it and without the brackets of a URL."""
    host = re.sub(r"^\[([^\]]*)\]$", r"\1", host.strip())
    if not host:
        raise ValueError("must not be empty")
    if not is_host(host):
        raise ValueError("must be a host name or an IP address, without a port")
    return host


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not HOST_NAME.fullmatch(host):
            raise ValueError(f"{host!r} is not a host name, for example chat.example.org")
    return hosts


def _normalize_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        origin if origin == ANY_ORIGIN else _normalize_origin(origin) for origin in origins
    )


def _normalize_origin(origin: str) -> str:
    """Return an origin as browsers send it: in lower case and without a default port."""
    if ORIGIN.fullmatch(origin):
        with suppress(ValueError):
            return str(URL(origin).origin())
    raise ValueError(
        f"{origin!r} is not an origin: write scheme, host and port, for example "
        "https://example.org or http://localhost:3000"
    )


def _check_networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    for network in networks:
        try:
            ip_network(network, strict=False)
        except ValueError:
            raise ValueError(
                f"{network!r} is not an IP address or network, for example 10.0.0.0/8"
            ) from None
    return networks


def _check_prefix(path: str) -> str:
    path = path.removesuffix("/")
    if path and not is_path_prefix(path):
        raise ValueError(f"{path!r} is not a path prefix, for example /chat")
    return path


Host: TypeAlias = Annotated[str, AfterValidator(_normalize_host)]
Names: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]
HostNames: TypeAlias = Annotated[Names, AfterValidator(_check_hosts)]
Origins: TypeAlias = Annotated[Names, AfterValidator(_normalize_origins)]
Networks: TypeAlias = Annotated[Names, AfterValidator(_check_networks)]
PathPrefix: TypeAlias = Annotated[str, AfterValidator(_check_prefix)]
