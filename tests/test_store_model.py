"""Random sequences of saves, reads, deletes and expiries, compared with a model in memory."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message
from tests.support.redis_servers import RedisServer
from tests.support.store import new_store

SESSIONS = st.sampled_from(["a", "b:1", "C.d-e_f"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TTL_S = 1000


class StoreMachine(RuleBasedStateMachine):
    """Runs each operation on the store and on a model: a dictionary of lists."""

    server: RedisServer
    database = iter(range(2000, 4000))

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, list[Message]] = {}
        # The sessions that exist, by last activity, latest last.
        self.order: list[str] = []

    @initialize()
    def open_store(self) -> None:
        self.loop = asyncio.Runner()
        url = self.server.url(next(self.database))
        self.redis = Redis.from_url(url, protocol=2)
        self.store = new_store(self.redis, timeout_s=10)

    def teardown(self) -> None:
        self.loop.run(self.redis.aclose())
        self.loop.close()

    @rule(
        session=SESSIONS,
        texts=st.lists(TEXTS, min_size=1, max_size=5),
        role=st.sampled_from(["user", "assistant"]),
        model=st.sampled_from(["openai/gpt-oss-20b", "other", None]),
        tokens=st.none() | st.integers(0, 10**9),
        context=st.integers(0, 12),
    )
    def save(self, session: str, texts: list[str], context: int, **fields: Any) -> None:
        finish_reason = "stop" if fields["role"] == "assistant" else None
        messages = [
            Message(id=new_message_id(), content=text, finish_reason=finish_reason, **fields)
            for text in texts
        ]
        expected_messages = self.sessions.setdefault(session, [])
        earlier = self.loop.run(self.store.save_messages(session, *messages, context=context))
        assert earlier == [
            {"role": each.role, "content": each.content}
            for each in (expected_messages[-context:] if context else [])
        ]
        expected_messages += messages
        self._touch(session)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def save_again(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        message = data.draw(st.sampled_from(self.sessions[session]))
        self.loop.run(self.store.save_messages(session, message))
        self._touch(session)

    @rule(session=SESSIONS)
    def clear(self, session: str) -> None:
        self.loop.run(self.store.clear_session(session))
        self._drop(session)

    @rule(session=SESSIONS)
    def expire(self, session: str) -> None:
        self.loop.run(self._expire(session))
        self._drop(session)

    @rule(session=SESSIONS, limit=st.integers(1, 7), oldest_first=st.booleans())
    def read_first_or_last_page(self, session: str, limit: int, oldest_first: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        expected_messages = self.sessions.get(session, [])
        page = self.loop.run(
            self.store.get_history_page(session, limit=limit, oldest_first=oldest_first)
        )
        assert page.messages == (
            expected_messages[:limit] if oldest_first else expected_messages[-limit:]
        )
        assert page.has_more == (len(expected_messages) > limit)
        assert page.message_count == len(expected_messages)
        assert page.last_message_time == (
            expected_messages[-1].timestamp if expected_messages else None
        )

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), limit=st.integers(1, 7), forward=st.booleans())
    def read_page_at_message(self, data: st.DataObject, limit: int, forward: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        expected_messages = self.sessions[session]
        index = data.draw(st.integers(0, len(expected_messages) - 1))
        message_id = expected_messages[index].id
        page = self.loop.run(
            self.store.get_history_page(
                session,
                limit=limit,
                after=message_id if forward else None,
                before=None if forward else message_id,
            )
        )
        rest = expected_messages[index + 1 :] if forward else expected_messages[:index]
        assert page.messages == (rest[:limit] if forward else rest[-limit:])
        assert page.has_more == (len(rest) > limit)

    @rule(limit=st.integers(1, 4), oldest_first=st.booleans())
    def list_sessions(self, limit: int, oldest_first: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        expected = self.order if oldest_first else self.order[::-1]
        listed: list[str] = []
        cursor: str | None = None
        while True:
            page = self.loop.run(
                self.store.get_sessions_page(limit=limit, after=cursor, oldest_first=oldest_first)
            )
            listed += page.sessions
            cursor = page.cursor
            if cursor is None:
                break
        assert listed == expected
        assert page.total_sessions == len(expected)

    @invariant()
    def sizes_match(self) -> None:
        if not hasattr(self, "store"):
            return
        for session, expected_messages in self.sessions.items():
            assert self.loop.run(self.store.get_session_size(session)) == len(expected_messages)

    async def _expire(self, session: str) -> None:
        await self.redis.pexpireat(f"chat:session:{session}", 1)

    def _touch(self, session: str) -> None:
        self.order = [*(name for name in self.order if name != session), session]

    def _drop(self, session: str) -> None:
        self.sessions.pop(session, None)
        self.order = [name for name in self.order if name != session]


@pytest.fixture
def machine(real_servers: dict[str, RedisServer]) -> type[StoreMachine]:
    """The state machine, on a real server."""
    StoreMachine.server = real_servers["valkey"]
    return StoreMachine


def test_the_store_behaves_like_a_dictionary_of_lists(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
