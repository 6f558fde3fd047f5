"""The history as a library: the calls of the specification, on a connection of its own."""

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

import groqchat
from groqchat import Message, RedisChatService
from groqchat.errors import ConfigurationError, HistoryFailed, HistoryUnavailable, InvalidField
from groqchat.services import redis_chat_service
from groqchat.storage import keys
from groqchat.storage.session_info import SessionInfo

MODEL = "openai/gpt-oss-20b"
MESSAGE = Message(id="0" * 17, role="user", content="Hello")


@pytest.fixture
async def history(redis_url: str) -> AsyncIterator[RedisChatService]:
    """A history on an empty database of a real server."""
    async with RedisChatService.from_url(redis_url, ttl_s=1000) as history:
        yield history


def parts(message: Message) -> tuple[str, str, str | None]:
    return message.role, message.content, message.model


async def test_the_seven_calls_of_the_specification(
    history: RedisChatService, redis: Redis
) -> None:
    assert await history.is_connected() is True
    assert await history.get_session_history("user-123-abc") == []
    question = await history.save_message("user-123-abc", "user", "What is Python?", MODEL)
    answer = await history.save_message("user-123-abc", "assistant", "A language.", MODEL)

    messages = await history.get_session_history("user-123-abc")
    assert [message.id for message in messages] == [question.id, answer.id]
    assert [parts(message) for message in messages] == [
        ("user", "What is Python?", MODEL),
        ("assistant", "A language.", MODEL),
    ]
    assert [message.timestamp for message in messages] == [question.timestamp, answer.timestamp]
    assert await history.get_session_size("user-123-abc") == 2
    assert await history.get_all_sessions() == ["user-123-abc"]
    info = await history.get_session_info("user-123-abc")
    assert info is not None
    assert replace(info, expires_at=None) == SessionInfo(
        session_id="user-123-abc",
        message_count=2,
        first_message_time=question.timestamp,
        last_message_time=answer.timestamp,
        expires_at=None,
        ttl_seconds=1000,
    )
    assert 995 <= await redis.ttl(keys.session_key("user-123-abc")) <= 1000

    await history.clear_session("user-123-abc")
    assert await history.get_session_history("user-123-abc") == []
    assert await history.get_all_sessions() == []
    assert await history.get_session_info("user-123-abc") is None


async def test_lists_are_complete_beyond_one_page(history: RedisChatService) -> None:
    messages = [
        Message(id=f"{number:017x}", role="user", content=f"{number}") for number in range(2500)
    ]
    await history.save_messages("s", *messages)
    assert [message.content for message in await history.get_session_history("s")] == [
        f"{number}" for number in range(2500)
    ]
    for number in range(1200):
        await history.save_messages(f"s{number}", messages[0])
    sessions = await history.get_all_sessions()
    assert sorted(sessions) == sorted(["s", *(f"s{number}" for number in range(1200))])


async def test_a_list_beyond_the_limit_is_an_error_that_names_the_iterator(
    history: RedisChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_chat_service, "MAX_LISTED", 2)
    for number in range(3):
        await history.save_message(f"s{number % 3}", "user", "x")
        await history.save_message("s0", "user", "y")
    with pytest.raises(HistoryFailed, match="use iter_history"):
        await history.get_session_history("s0")
    with pytest.raises(HistoryFailed, match="use iter_sessions"):
        await history.get_all_sessions()
    assert len([each async for each in history.iter_history("s0")]) == 4
    assert len([each async for each in history.iter_sessions()]) == 3


async def test_an_unknown_role_is_rejected(history: RedisChatService) -> None:
    with pytest.raises(ValueError, match="role must be one of system, user, assistant, tool"):
        await history.save_message("s", "human", "Hello")
    assert await history.get_session_size("s") == 0


@pytest.mark.parametrize("content", [None, 5, b"Hello", {"text": "Hello"}])
async def test_content_that_is_not_text_is_rejected(
    history: RedisChatService, content: Any
) -> None:
    with pytest.raises(TypeError, match="content must be a string"):
        await history.save_message("s", "user", content)
    assert await history.get_session_size("s") == 0


SESSION_CALLS: dict[str, Callable[[RedisChatService, Any], Awaitable[Any]]] = {
    "save_message": lambda history, session_id: history.save_message(session_id, "user", "Hello"),
    "save_messages": lambda history, session_id: history.save_messages(session_id, MESSAGE),
    "try_save": lambda history, session_id: history.try_save(session_id, MESSAGE),
    "remove_messages": lambda history, session_id: history.remove_messages(session_id, [MESSAGE]),
    "get_session_history": RedisChatService.get_session_history,
    "get_history_page": RedisChatService.get_history_page,
    "get_session_size": RedisChatService.get_session_size,
    "get_session_info": RedisChatService.get_session_info,
    "clear_session": RedisChatService.clear_session,
}


@pytest.mark.parametrize("call", SESSION_CALLS.values(), ids=SESSION_CALLS)
async def test_session_ids_that_the_api_rejects_are_rejected(
    history: RedisChatService, redis: Redis, call: Callable[[RedisChatService, Any], Awaitable[Any]]
) -> None:
    for session_id in ("", "a b", "x" * 129, "\ud800", "ünïcode", "a\n", "-a", None, 5, b"s"):
        with pytest.raises(
            InvalidField, match=r"^session_id: must have 1 to 128 characters: ASCII letters"
        ) as failure:
            await call(history, session_id)
        assert failure.value.param == "session_id"
    assert await redis.keys() == []


@pytest.mark.parametrize("url", [None, "memory:"])
async def test_calls_after_the_end_of_the_context_fail_without_a_new_connection(
    redis_url: str, redis: Redis, url: str | None
) -> None:
    async with RedisChatService.from_url(url or redis_url) as history:
        await history.save_message("s", "user", "Hello")
    before = await own_connections(redis)
    for call in SESSION_CALLS.values():
        if call is not SESSION_CALLS["try_save"]:
            with pytest.raises(HistoryFailed, match=r"^the history is closed$"):
                await call(history, "s")
    with pytest.raises(HistoryFailed, match=r"^the history is closed$"):
        await history.get_all_sessions()
    with pytest.raises(HistoryFailed, match=r"^the history is closed$"):
        await history.get_sessions_page()
    assert await history.try_save("s", MESSAGE) is False
    assert await history.is_connected() is False
    assert await own_connections(redis) <= before


async def own_connections(redis: Redis) -> set[str]:
    """Return the ids of the connections to the database of the test."""
    number = redis.connection_pool.connection_kwargs["db"]
    clients = await redis.client_list()
    return {each["id"] for each in clients if int(each["db"]) == number}


async def test_the_environment_does_not_change_a_history_that_is_opened_by_url(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_TIMEOUT_S", "not a number")
    monkeypatch.setenv("REDIS_URL", "redis://localhost:1")
    async with RedisChatService.from_url(redis_url) as history:
        await history.save_message("s", "user", "Hello")
        info = await history.get_session_info("s")
        assert info is not None
        assert info.ttl_seconds == 86400


async def test_an_unreachable_server_is_reported_by_the_first_call() -> None:
    async with RedisChatService.from_url("redis://localhost:1", timeout_s=0.2) as history:
        assert await history.is_connected() is False
        with pytest.raises(HistoryUnavailable):
            await history.save_message("s", "user", "Hello")


@pytest.mark.parametrize(("url", "ttl_s"), [("http://localhost", 10), ("redis://localhost", 0)])
async def test_an_invalid_argument_is_a_configuration_error(url: str, ttl_s: int) -> None:
    with pytest.raises(ConfigurationError):
        async with RedisChatService.from_url(url, ttl_s=ttl_s):
            pass


async def test_a_history_in_memory_needs_no_server() -> None:
    async with RedisChatService.from_url("memory:") as history:
        await history.save_message("s", "user", "Hello")
        assert await history.get_session_size("s") == 1


def test_importing_the_package_imports_no_library() -> None:
    program = (
        "import sys, groqchat; "
        "loaded = {'redis', 'pydantic', 'aiohttp', 'groq'} & set(sys.modules); "
        "assert not loaded, loaded; groqchat.RedisChatService"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_the_package_has_no_other_attributes() -> None:
    assert set(groqchat.__all__) == {"Message", "RedisChatService", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        groqchat.Nothing  # noqa: B018 - reading the attribute raises
