"""Pages of the library reject a limit or a cursor that the API rejects too."""

from typing import Any

import pytest

from groqchat.errors import InvalidField, SessionNotFound
from groqchat.fields import MESSAGE_ID_PATTERN, PATTERN_RULES, SESSION_CURSOR_PATTERN
from groqchat.services.history_store import HistoryStore
from tests.support.store import save_messages

MESSAGE_RULE = PATTERN_RULES[MESSAGE_ID_PATTERN]
SESSION_RULE = PATTERN_RULES[SESSION_CURSOR_PATTERN]
LIMITS = [0, -1, True, 1.5, "5", None]


def assert_rejected(raised: pytest.ExceptionInfo[InvalidField], param: str, rule: str) -> None:
    assert (raised.value.param, raised.value.message) == (param, f"{param}: {rule}")


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_limit_must_be_at_least_one(store: HistoryStore, limit: Any) -> None:
    await save_messages(store, 3)
    with pytest.raises(InvalidField) as raised:
        await store.get_history_page("s", limit=limit)
    assert_rejected(raised, "limit", "must be a whole number of at least 1")
    with pytest.raises(InvalidField) as raised:
        await store.get_sessions_page(limit=limit)
    assert_rejected(raised, "limit", "must be a whole number of at least 1")


@pytest.mark.parametrize("name", ["after", "before"])
@pytest.mark.parametrize(
    "cursor", ["", "s", "660e28ea32c5fb2", "g" * 17, "6" * 18, "٣" * 17, 5, b"6"]
)
async def test_a_cursor_of_a_history_must_be_a_message_id(
    store: HistoryStore, name: str, cursor: Any
) -> None:
    await save_messages(store, 3)
    with pytest.raises(InvalidField) as raised:
        await store.get_history_page("s", **{name: cursor})
    assert_rejected(raised, name, MESSAGE_RULE)


async def test_both_cursors_of_a_history_are_checked(store: HistoryStore) -> None:
    (first, *_) = await save_messages(store, 3)
    with pytest.raises(InvalidField) as raised:
        await store.get_history_page("s", after=first.id, before="x")
    assert_rejected(raised, "before", MESSAGE_RULE)


@pytest.mark.parametrize("name", ["after", "before"])
@pytest.mark.parametrize("cursor", [5, b"s", "\ud800"])
async def test_a_cursor_of_the_sessions_must_be_a_text(
    store: HistoryStore, name: str, cursor: Any
) -> None:
    await save_messages(store, 1)
    with pytest.raises(InvalidField) as raised:
        await store.get_sessions_page(**{name: cursor})
    assert_rejected(raised, name, SESSION_RULE)


@pytest.mark.parametrize("cursor", ["", "unknown", "s@x", "s@nan"])
async def test_a_cursor_of_no_session_is_not_found(store: HistoryStore, cursor: str) -> None:
    await save_messages(store, 1)
    with pytest.raises(SessionNotFound):
        await store.get_sessions_page(after=cursor)


async def test_the_library_accepts_larger_pages_than_the_api(store: HistoryStore) -> None:
    messages = await save_messages(store, 3)
    page = await store.get_history_page("s", limit=5000)
    assert (page.messages, page.has_more) == (messages, False)
    assert (await store.get_sessions_page(limit=5000)).sessions == ["s"]
