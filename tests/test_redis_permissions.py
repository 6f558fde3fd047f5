"""Redis users who lack a permission that the service needs."""

import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from redis.asyncio import Redis

from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.write_probe import WriteProbe
from tests.support.docs import read
from tests.support.redis_servers import RedisServer
from tests.support.service import run_groqchat

COMMANDS = [
    *("eval", "exists", "expire", "get", "incr", "pttl", "sadd", "scard", "set", "smembers"),
    *("srem", "ttl", "unlink", "xadd", "xrange", "xrevrange", "zadd", "zcard", "zcount"),
    *("zrange", "zrem", "zremrangebyscore", "zscore"),
]
PATTERNS = [f"{prefix}*" for prefix in (*keys.PREFIXES, keys.WRITE_PROBE)]
USER = {"enabled": True, "passwords": ["+secret"]}

UrlOf: TypeAlias = Callable[..., str]


@pytest.fixture
def url_of(real_servers: dict[str, RedisServer], redis_url: str) -> UrlOf:
    """Return a function that creates a user and returns the URL with its name."""

    def create(
        *, denied: str = "", patterns: list[str] = PATTERNS, permitted: Sequence[str] = ("+@all",)
    ) -> str:
        with real_servers["valkey"].client() as client:
            # Names of categories start with `+@`.
            categories = [each for each in permitted if each.startswith("+@")]
            commands = [each for each in permitted if each not in categories]
            client.acl_setuser(
                "some",
                **USER,
                reset=True,
                keys=patterns,
                categories=categories,
                commands=[*commands, *([f"-{denied}"] if denied else [])],
            )
        return f"{redis_url}&username=some&password=secret"

    return create


@asynccontextmanager
async def probe_of(url: str) -> AsyncIterator[WriteProbe]:
    async with (
        Redis.from_url(url, protocol=2) as client,
        CommandBatcher(client, timeout_s=5) as batcher,
    ):
        yield WriteProbe(batcher)


async def test_the_permissions_of_the_documentation_are_enough(url_of: UrlOf) -> None:
    (line,) = re.findall(r"ACL SETUSER groqchat on >PASSWORD (.*)", read("docs/operations.md"))
    rules = line.split()
    patterns = [rule[1:] for rule in rules if rule.startswith("~")]
    permitted = [rule for rule in rules if rule.startswith("+")]
    async with probe_of(url_of(patterns=patterns, permitted=permitted)) as probe:
        assert await probe.state() == "ok"


@pytest.mark.parametrize("command", COMMANDS)
async def test_the_probe_notices_a_command_that_is_not_permitted(
    url_of: UrlOf, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with probe_of(url_of(denied=command)) as probe:
        assert await probe.state() == "rejects writes: NOPERM"
        assert await probe.state() == "rejects writes: NOPERM"
    (line,) = caplog.messages
    assert f"'{command}' command" in line


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_the_probe_notices_a_key_that_is_not_permitted(url_of: UrlOf, pattern: str) -> None:
    others = [each for each in PATTERNS if each != pattern and not pattern.startswith(each[:-1])]
    async with probe_of(url_of(patterns=others)) as probe:
        assert await probe.state() == "rejects writes: NOPERM"


def test_the_check_command_notices_a_missing_permission(url_of: UrlOf, tmp_path: Path) -> None:
    result = run_groqchat("check", cwd=tmp_path, REDIS_URL=url_of(denied="eval"))
    assert result.returncode == 1
    assert "rejects writes: NOPERM" in result.stdout
    assert "'eval' command" in result.stderr
