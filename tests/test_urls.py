"""URLs in settings: masked credentials, and errors that do not repeat them."""

import pytest

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
            "rediss://u@h:1/0?ssl_keyfile=/k.pem&ssl_keyfile_password=hunter2",
            f"rediss://{M}@h:1/0?ssl_keyfile=/k.pem&ssl_keyfile_password={M}",
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
