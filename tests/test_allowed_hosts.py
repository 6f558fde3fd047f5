"""The Host header: only names that belong to the service are accepted (DNS rebinding)."""

import asyncio
import logging

import pytest
from aiohttp import ClientSession
from pydantic import ValidationError

from groqchat.http.log_once import MAX_CAUSES
from groqchat.settings import Settings
from tests.conftest import Serve
from tests.support.api import BASE, assert_error

SESSIONS = f"{BASE}/sessions"
LOGGER = "groqchat.http.hosts"
REFUSAL = (
    "The service does not accept this host name. Add the name to ALLOWED_HOSTS to allow requests "
    "that use it."
)


async def status_of(api: ClientSession, host: str, path: str = SESSIONS) -> int:
    async with api.get(path, headers={"Host": host}) as response:
        if response.status != 200:
            error = await assert_error(response, 421, "host_not_allowed")
            assert error["message"] == REFUSAL
        return response.status


async def statuses_of(api: ClientSession, *hosts: str) -> dict[str, int]:
    # Twice, because accepted names are remembered.
    found = {host: await status_of(api, host) for host in hosts}
    assert found == {host: await status_of(api, host) for host in hosts}
    return found


async def test_by_default_loopback_names_and_addresses_are_accepted(api: ClientSession) -> None:
    accepted = (
        "localhost",
        "LocalHost:5000",
        "localhost.",
        "chat.localhost:5000",
        "127.0.0.1:5000",
        "192.168.1.20:5000",
        "10.0.0.7",
        "[::1]:5000",
        "[fe80::1]",
        "127.1:5000",
        "127.0.1",
        "my_app-1.localhost",
    )
    assert await statuses_of(api, *accepted) == dict.fromkeys(accepted, 200)


async def test_by_default_every_other_name_is_rejected(api: ClientSession) -> None:
    rejected = (
        "attacker.example",
        "attacker.example:5000",
        "localhost.attacker.example",
        "notlocalhost",
        "127.0.0.1.attacker.example",
        "127.0.0.1@attacker.example",
        "attacker.example:80:127.0.0.1",
        "[attacker.example]",
        "[::1]attacker.example",
        "::1",
        "localhost:x",
        "groqchat:5000",
        "attacker.example/.localhost",
        "attacker.example?.localhost",
        "attacker.example#.localhost",
        "a b.localhost",
        ".localhost",
        "a..localhost",
        "128.1",
        "127.1.attacker.example",
        "127.",
        "127.0.0.0.1",
        "127.99999999",
        "",
    )
    assert await statuses_of(api, *rejected) == dict.fromkeys(rejected, 421)


async def test_a_rejected_request_changes_nothing(api: ClientSession) -> None:
    params = {"message": "Hello", "session_id": "s"}
    headers = {"Host": "attacker.example", "Origin": "http://attacker.example"}
    async with api.post(f"{BASE}/simple-chat", params=params, headers=headers) as response:
        await assert_error(response, 421, "host_not_allowed")
    async with api.get(f"{BASE}/history/s") as response:
        assert (await response.json())["message_count"] == 0


async def test_the_setting_adds_names_and_the_subdomains_of_a_wildcard(serve: Serve) -> None:
    api = await serve(allowed_hosts="groqchat, Chat.Example.org, *.example.net")
    expected = {
        "groqchat:5000": 200,
        "CHAT.example.ORG:443": 200,
        "a.example.net": 200,
        "a.b.example.net:8080": 200,
        "localhost": 200,
        "10.1.2.3": 200,
        "example.net": 421,
        "badexample.net": 421,
        "example.org": 421,
        "x.chat.example.org": 421,
    }
    assert await statuses_of(api, *expected) == expected


async def test_the_name_of_the_setting_host_is_accepted(serve: Serve) -> None:
    api = await serve(host="Chat.Internal")
    assert await statuses_of(api, "chat.internal:5000", "other.internal") == {
        "chat.internal:5000": 200,
        "other.internal": 421,
    }


async def test_a_wildcard_accepts_every_host(serve: Serve) -> None:
    api = await serve(allowed_hosts=("*",))
    assert await statuses_of(api, "attacker.example", "", "a b") == {
        "attacker.example": 200,
        "": 200,
        "a b": 200,
    }


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_checks_accept_every_host(api: ClientSession, path: str) -> None:
    assert await status_of(api, "pod.internal", path) == 200


async def test_an_http_1_0_request_without_a_host_is_accepted(api: ClientSession) -> None:
    url = api._base_url
    assert url is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"GET {SESSIONS} HTTP/1.0\r\n\r\n".encode())
    assert (await reader.readline()).split()[1] == b"200"
    writer.close()


async def test_each_rejected_host_is_logged_once_and_their_number_is_bounded(
    api: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    names = [f"name-{number}.example" for number in range(MAX_CAUSES + 3)]
    for host in ("bad\x85.example", "bad\x85.example", *names):
        assert await status_of(api, host) == 421
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert lines[:2] == [
        "rejected a request for the host 'bad\\x85.example': ALLOWED_HOSTS does not contain it",
        "rejected a request for the host 'name-0.example': ALLOWED_HOSTS does not contain it",
    ]
    assert len(lines) == MAX_CAUSES + 1
    assert lines[-1] == "further lines of this kind are not logged"


@pytest.mark.parametrize(
    "value",
    [
        "http://example.org",
        "example.org:5000",
        "example.org/chat",
        "*.*.org",
        "a*",
        "exa mple",
        "-",
    ],
)
def test_a_value_that_is_no_host_name_is_rejected(value: str) -> None:
    with pytest.raises(
        ValidationError, match=r"is not a host name, for example chat\.example\.org"
    ):
        Settings(allowed_hosts=value)


def test_hosts_may_be_addresses() -> None:
    hosts = Settings(allowed_hosts="10.0.0.1, [::1], ::1,*").allowed_hosts
    assert hosts == ("10.0.0.1", "[::1]", "::1", "*")
