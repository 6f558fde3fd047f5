"""Any sequence of saves, reads, deletes and expiries matches a plain model in memory."""

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

from groqchat.services.redis_chat_service import RedisChatService
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message
from tests.support.redis_servers import RedisServer
from tests.support.store import new_store

SESSIONS = st.sampled_from(["a", "b:1", "C.d-e_f"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TTL_S = 1000


class StoreMachine(RuleBasedStateMachine):
    """Holds beside the store what the store ought to hold."""

    server: RedisServer
    database = iter(range(2000, 4000))

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, list[Message]] = {}
        # Live sessions, the one active last at the end.
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
        kept = self.sessions.setdefault(session, [])
        earlier = self.loop.run(self.store.save_message(session, *messages, context=context))
        assert earlier == [
            {"role": each.role, "content": each.content}
            for each in (kept[-context:] if context else [])
        ]
        kept += messages
        self._touch(session)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def save_again(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        message = data.draw(st.sampled_from(self.sessions[session]))
        self.loop.run(self.store.save_message(session, message))
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
    def read_an_end(self, session: str, limit: int, oldest_first: bool) -> None:  # noqa: FBT001 - drawn
        kept = self.sessions.get(session, [])
        page = self.loop.run(
            self.store.get_session_history(session, limit=limit, oldest_first=oldest_first)
        )
        assert page.messages == (kept[:limit] if oldest_first else kept[-limit:])
        assert page.has_more == (len(kept) > limit)
        assert page.message_count == len(kept)
        assert page.last_message_time == (kept[-1].timestamp if kept else None)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), limit=st.integers(1, 7), forward=st.booleans())
    def read_from_a_message(self, data: st.DataObject, limit: int, forward: bool) -> None:  # noqa: FBT001 - drawn
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        kept = self.sessions[session]
        place = data.draw(st.integers(0, len(kept) - 1))
        message_id = kept[place].id
        page = self.loop.run(
            self.store.get_session_history(
                session,
                limit=limit,
                after=message_id if forward else None,
                before=None if forward else message_id,
            )
        )
        rest = kept[place + 1 :] if forward else kept[:place]
        assert page.messages == (rest[:limit] if forward else rest[-limit:])
        assert page.has_more == (len(rest) > limit)

    @rule(limit=st.integers(1, 4), oldest_first=st.booleans())
    def list_sessions(self, limit: int, oldest_first: bool) -> None:  # noqa: FBT001 - drawn
        expected = self.order if oldest_first else self.order[::-1]
        listed: list[str] = []
        cursor: str | None = None
        while True:
            page = self.loop.run(
                self.store.get_all_sessions(limit=limit, after=cursor, oldest_first=oldest_first)
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
        for session, kept in self.sessions.items():
            assert self.loop.run(self.store.get_session_size(session)) == len(kept)

    async def _expire(self, session: str) -> None:
        await self.redis.pexpireat(f"chat:session:{session}", 1)

    def _touch(self, session: str) -> None:
        self.order = [*(name for name in self.order if name != session), session]

    def _drop(self, session: str) -> None:
        self.sessions.pop(session, None)
        self.order = [name for name in self.order if name != session]


@pytest.fixture
def machine(real_servers: dict[str, RedisServer]) -> type[StoreMachine]:
    StoreMachine.server = real_servers["valkey"]
    return StoreMachine


def test_the_store_behaves_as_a_plain_dictionary_of_lists(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
