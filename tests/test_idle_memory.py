"""An idle connection does not keep the bodies of its last request and response in memory."""

import asyncio
import gc

from aiohttp import ClientSession, web

from groqchat.http.endpoint import JsonResponse
from groqchat.runtime.phases import Phase
from groqchat.runtime.protocol import HttpConnection
from tests.support.api import BASE

BODY = {"message": "Hello", "session_id": "s"}


async def until_idle() -> None:
    def phases() -> set[Phase]:
        found = (each for each in gc.get_objects() if isinstance(each, HttpConnection))
        return {connection.phase for connection in found}

    async with asyncio.timeout(10):
        while phases() - {"idle", "closing"}:
            await asyncio.sleep(0.01)


async def test_an_idle_connection_holds_neither_request_body_nor_response_body(
    api: ClientSession,
) -> None:
    for body, status in ((BODY, 200), ({**BODY, "unknown": "field"}, 422)):
        async with api.post(f"{BASE}/chat", json=body) as response:
            assert response.status == status
    async with api.get(f"{BASE}/history/s") as response:
        assert len((await response.json())["messages"]) == 2
    await until_idle()
    objects = gc.get_objects()
    # The mock Groq server has requests and responses too.
    requests = [each for each in objects if isinstance(each, web.BaseRequest)]
    own = [each for each in requests if isinstance(each.protocol, HttpConnection)]
    assert {each._read_bytes for each in own} == {None}
    assert {each.body for each in objects if isinstance(each, JsonResponse)} == {None}
