"""URLs in settings: validation, and forms that a log may contain."""

import re
import ssl
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlencode, urlsplit

from groqchat.address_types import is_host
from groqchat.openai_paths import OPENAI_PREFIX

REDIS_SCHEMES = ("redis", "rediss", "unix", "embedded", "memory")
# The options of redis-py that a URL may set: database, credentials and TLS. Timeouts and limits
# are settings of the service.
REDIS_URL_OPTION = re.compile(
    "db|username|password|ssl_(ca_certs|ca_path|certfile|keyfile|password|cert_reqs|"
    "check_hostname|min_version|ciphers)"
)
# The values that redis-py accepts, and their description. It ignores the case of booleans.
TLS_VALUES = {
    "ssl_min_version": (re.compile("77[12]"), "771 (TLS 1.2) or 772 (TLS 1.3)"),
    "ssl_cert_reqs": (re.compile("required|optional|none"), "required, optional or none"),
    "ssl_check_hostname": (re.compile("(?i:yes|no|true|false|1|0)"), "yes or no"),
}
SERVICE_LINK_HINT = (
    "must be a port, not an address, which Kubernetes sets for a service named redis; set "
    "REDIS_PORT to the port, or `enableServiceLinks: false` in the pod"
)
INVALID_HOST = "the host of the URL is not a host name or an IP address"
MASK = "**********"
# The user and the password of any URL in a text.
CREDENTIALS = re.compile(r"(?<=//)[^/\s]+@")
# The options of a Redis URL whose values are secret.
SECRET_OPTIONS = {"username", "password", "ssl_password"}


def split_url(url: str) -> SplitResult:
    """Split a URL; the error for an invalid URL does not repeat it, because it may be secret."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading the property validates the port
    except ValueError:
        raise ValueError(
            "this is not a valid URL; special characters must be percent-encoded"
        ) from None
    return parts


def normalize_groq_url(url: str) -> str:
    """Return the URL of Groq's API in the form that the SDK expects, or raise ValueError."""
    parts = split_url(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the URL must start with http://, https:// or offline:")
    if "@" in parts.netloc:
        raise ValueError("this URL must not contain credentials")
    if parts.query or parts.fragment:
        raise ValueError("this URL must not contain a query or a fragment")
    if not is_host(parts.hostname):
        raise ValueError(INVALID_HOST)
    # The SDK appends this path, but URLs in Groq's documentation contain it already.
    return url.rstrip("/").removesuffix(OPENAI_PREFIX)


def check_redis_url(url: str) -> None:
    """Raise ValueError if a Redis URL is not valid; the error does not repeat the URL."""
    scheme, colon, rest = url.partition(":")
    if scheme in {"redis+sentinel", "redis+cluster"}:
        raise ValueError(f"{scheme}:// is not supported yet")
    if scheme not in REDIS_SCHEMES or not colon:
        known = ", ".join(f"{name}:" for name in REDIS_SCHEMES)
        raise ValueError(f"the URL must start with one of {known}")
    if scheme == "embedded" and not rest:
        raise ValueError("the URL must name a directory for the data: embedded:DIR")
    if scheme in {"redis", "rediss", "unix"}:
        _check_server_url(url)


def redis_address(url: str) -> str:
    """Return the address in a valid Redis URL, without credentials."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    if parts.scheme not in {"redis", "rediss"}:
        return url
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def without_credentials(text: str) -> str:
    """Return a text with masked credentials of URLs: a value can belong to another setting."""
    return CREDENTIALS.sub(f"{MASK}@", text)


def masked_url(url: str) -> str:
    """Return a valid Redis URL with masked credentials."""
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    options = [
        (name, MASK if name in SECRET_OPTIONS else value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    slashes = "//" if url.startswith(f"{parts.scheme}://") else ""
    query = f"?{urlencode(options, safe='/*')}" if options else ""
    # `geturl` would drop the slashes of unix:///path.
    return f"{parts.scheme}:{slashes}{MASK if credentials else ''}{at}{host}{parts.path}{query}"


def _check_server_url(url: str) -> None:
    parts = split_url(url)
    if parts.fragment:
        raise ValueError("a # in the URL must be percent-encoded as %23")
    if parts.scheme != "unix" and parts.hostname and not is_host(parts.hostname):
        raise ValueError(INVALID_HOST)
    if parts.scheme == "unix" and not parts.path.startswith("/"):
        raise ValueError("the URL must name a socket: unix:///path/to/socket")
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError("the path of the URL must be the number of the database")
    query = parse_qs(parts.query, keep_blank_values=True)
    if "ssl_keyfile_password" in query:
        raise ValueError("the option ssl_keyfile_password is named ssl_password")
    if unknown := [name for name in query if not REDIS_URL_OPTION.fullmatch(name)]:
        # Other texts may be part of a password that contains a question mark.
        names = [name for name in unknown if re.fullmatch("[a-z_]+", name)]
        raise ValueError(f"the URL does not accept the option {', '.join(names)}".rstrip())
    if any(not value.isdecimal() for value in query.get("db", [])):
        raise ValueError("db must be the number of the database")
    if tls := [name for name in query if name.startswith("ssl_")]:
        if parts.scheme != "rediss":
            raise ValueError(f"{tls[0]} needs TLS: the URL must start with rediss:")
        _check_tls_options(query)


def _check_tls_options(query: dict[str, list[str]]) -> None:
    """Raise ValueError for values with which redis-py cannot create a connection.

    The files are not read: they may be replaced while the service runs.
    """
    for name, (pattern, allowed) in TLS_VALUES.items():
        if not all(map(pattern.fullmatch, query.get(name, []))):
            raise ValueError(f"{name} must be {allowed}")
    if "ssl_keyfile" in query and "ssl_certfile" not in query:
        raise ValueError("ssl_keyfile needs ssl_certfile")
    try:
        for ciphers in query.get("ssl_ciphers", []):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(ciphers)
    except ssl.SSLError:
        raise ValueError("ssl_ciphers: OpenSSL knows none of these ciphers") from None
