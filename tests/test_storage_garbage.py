"""Redis timeouts leave no reference cycles, which would retain the objects of a turn."""

import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import ClientSession
from pydantic import SecretStr

from groqchat.errors import HistoryUnavailable
from groqchat.services.turns.chat import _TurnState
from groqchat.storage.command_batcher import _Call
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.garbage import no_gc
from tests.support.redis_servers import RedisServer

KINDS = (_TurnState, _Call, HistoryUnavailable)
TURNS = 3


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """Disable the log: pytest keeps its records, which refer to the errors."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["plain", "stream"])
async def test_turns_during_a_frozen_redis_leave_no_cycles(
    serve: Serve, own_redis_server: RedisServer, fields: dict[str, Any]
) -> None:
    api = await serve(redis_url=SecretStr(own_redis_server.url()), redis_timeout_s=0.2)
    await chat(api, fields)
    own_redis_server.freeze()
    gc.collect()
    with no_gc():
        for _ in range(TURNS):
            await chat(api, fields)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        found = [type(each).__name__ for each in gc.garbage if isinstance(each, KINDS)]
        gc.garbage.clear()
    own_redis_server.thaw()
    assert found == []


async def chat(api: ClientSession, fields: dict[str, Any]) -> None:
    body = {"message": "Hello", "session_id": "s", **fields}
    response = await api.post(f"{BASE}/chat", json=body)
    assert response.status == 200
    await response.read()
