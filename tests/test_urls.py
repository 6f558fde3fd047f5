"""URLs in settings: masked credentials, and errors that do not repeat them."""

import re

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from groqchat.settings import Settings
from groqchat.storage.connection import open_redis
from groqchat.urls import check_redis_url, masked_url

M = "**********"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://example.org:7000/2", "redis://example.org:7000/2"),
        ("redis://user:hunter2@example.org:7000/2", f"redis://{M}@example.org:7000/2"),
        ("redis://:hunter@2@example.org/2", f"redis://{M}@example.org/2"),
        ("rediss://h?password=hunter2&db=1", f"rediss://h?password={M}&db=1"),
        ("rediss://h?p%61ssword=hunter2", f"rediss://h?password={M}"),
        (
            "rediss://u@h:1/0?ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_password=hunter2",
            f"rediss://{M}@h:1/0?ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_password={M}",
        ),
        (
            "unix:///run/r.sock?username=u&password=hunter2",
            f"unix:///run/r.sock?username={M}&password={M}",
        ),
        ("unix:/run/r.sock?password=hunter2", f"unix:/run/r.sock?password={M}"),
        ("unix://user:hunter2@/run/r.sock", f"unix://{M}@/run/r.sock"),
        ("embedded:.data/redis", "embedded:.data/redis"),
        ("memory:", "memory:"),
    ],
)
def test_a_masked_url_shows_everything_but_the_credentials(url: str, masked: str) -> None:
    check_redis_url(url)
    assert masked_url(url) == masked


@pytest.mark.parametrize(
    "url", ["redis://:1?hunter2@host", "redis://:pa?hunter2@host", "redis://:hunter2#@host"]
)
def test_the_error_for_a_password_that_is_not_encoded_does_not_repeat_it(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as raised:
        check_redis_url(url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "redis://h?ssl_ca_certs=/ca.pem",
            "ssl_ca_certs needs TLS: the URL must start with rediss:",
        ),
        (
            "unix:///r.sock?ssl_cert_reqs=none",
            "ssl_cert_reqs needs TLS: the URL must start with rediss:",
        ),
        ("rediss://h?ssl_keyfile_password=hunter2", "ssl_keyfile_password is named ssl_password"),
        ("redis://h?ssl_keyfile_password=hunter2", "ssl_keyfile_password is named ssl_password"),
        (
            "rediss://h?ssl_min_version=TLSv1_2",
            "ssl_min_version must be 771 (TLS 1.2) or 772 (TLS 1.3)",
        ),
        ("rediss://h?ssl_min_version=99", "ssl_min_version must be 771 (TLS 1.2) or 772 (TLS 1.3)"),
        ("rediss://h?ssl_min_version=", "ssl_min_version must be 771 (TLS 1.2) or 772 (TLS 1.3)"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs must be required, optional or none"),
        ("rediss://h?ssl_check_hostname=maybe", "ssl_check_hostname must be yes or no"),
        ("rediss://h?ssl_ciphers=hunter2", "ssl_ciphers: OpenSSL knows none of these ciphers"),
        ("rediss://h?ssl_keyfile=/k.pem", "ssl_keyfile needs ssl_certfile"),
    ],
)
def test_an_unusable_tls_option_is_an_error_that_says_what_is_allowed(
    url: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        check_redis_url(url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        "ssl_min_version=771&ssl_cert_reqs=none&ssl_check_hostname=no",
        "ssl_min_version=772&ssl_cert_reqs=optional&ssl_check_hostname=False",
        "ssl_cert_reqs=required&ssl_check_hostname=true&ssl_ciphers=ECDHE%2BAESGCM",
        "ssl_ca_certs=/ca.pem&ssl_ca_path=/ca&ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
    ],
)
async def test_every_accepted_tls_option_creates_a_connection(options: str) -> None:
    url = f"rediss://localhost:1?{options}"
    check_redis_url(url)
    async with open_redis(Settings(redis_url=url)) as redis:
        with pytest.raises(RedisConnectionError):
            await redis.ping()
