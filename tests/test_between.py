"""Pages that lie between two messages."""

from itertools import combinations

from redis.asyncio import Redis

from groqchat.services.redis_chat_service import RedisChatService
from tests.test_store import saved


async def test_a_page_may_lie_between_two_messages(store: RedisChatService) -> None:
    messages = await saved(store, 6)
    first, last = messages[1].id, messages[4].id
    page = await store.get_session_history("s", after=first, before=last)
    assert (page.messages, page.has_more) == (messages[2:4], False)
    page = await store.get_session_history("s", after=first, before=last, limit=1)
    assert (page.messages, page.has_more) == (messages[2:3], True)
    assert (await store.get_session_history("s", after=last, before=first)).messages == []
    page = await store.get_session_history("s", after=first, before=last, limit=2)
    assert (page.messages, page.has_more) == (messages[2:4], False)


async def test_messages_of_one_moment_lie_between_each_other(
    store: RedisChatService, any_redis: Redis
) -> None:
    members = {f'{{"role":"user","content":"{number}"}}': 1705314645.5 for number in range(6)}
    await any_redis.zadd("chat:session:s", members)
    ids = [message.id for message in (await store.get_session_history("s")).messages]
    for first, last in combinations(range(6), 2):
        page = await store.get_session_history("s", after=ids[first], before=ids[last])
        assert [message.id for message in page.messages] == ids[first + 1 : last]
        assert page.has_more is False
