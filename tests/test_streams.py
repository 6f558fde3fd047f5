"""Streamed turns: events, disconnected and stalled clients, failures of Groq and Redis."""

import asyncio
import socket
import time
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import ClientSession

from groqchat.http import event_stream
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events, read_events, text_of
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.slow_clients import api_port, has_messages, never_reading_client
from tests.support.streams import STREAM_REQUEST, history, start_stream, wait_until


async def test_a_stream_contains_the_events_of_a_turn_from_start_to_done(
    api: ClientSession, groq: MockGroq
) -> None:
    response = await api.post(
        f"{BASE}/chat", json={**STREAM_REQUEST, "temperature": 0.5, "system_prompt": "Be brief."}
    )
    events = await all_events(response)

    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert len(response.headers["X-Request-ID"]) == 32
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    names = [event.name for event in events]
    assert names == ["start", *["delta"] * (len(events) - 2), "done"]
    user_message, answer = await history(api)
    assert events[0].data == {
        "turn_id": user_message["id"],
        "session_id": "s",
        "model": "openai/gpt-oss-20b",
        "timestamp": user_message["timestamp"],
    }
    assert events[-1].data == {
        "message": text_of(events),
        "model": "openai/gpt-oss-20b",
        "timestamp": answer["timestamp"],
        "tokens_used": answer["tokens"],
        "finish_reason": "stop",
        "session_id": "s",
        "message_id": answer["id"],
        "turn_id": user_message["id"],
        "history_saved": True,
    }
    assert answer["content"] == text_of(events)
    assert "status" not in answer
    assert groq.requests[0]["stream"] is True
    assert groq.requests[0]["temperature"] == 0.5
    assert groq.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_events_arrive_before_the_completion_is_finished(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 50
    response, _ = await start_stream(api)
    first = await anext(read_events(response))
    assert (first.name, first.data) == ("delta", {"text": "This "})
    assert len(await history(api)) == 1
    response.close()


async def test_simple_chat_can_stream(api: ClientSession) -> None:
    query = {"message": "Hello", "session_id": "s", "stream": "true"}
    events = await all_events(await api.post(f"{BASE}/simple-chat", params=query))
    assert events[-1].data["message"] == text_of(events) == (await history(api))[1]["content"]


async def test_an_unknown_model_is_rejected_before_the_stream_starts(
    api: ClientSession, groq: MockGroq
) -> None:
    await api.get(f"{BASE}/models")
    for stream in (True, False):
        body = {**STREAM_REQUEST, "model": "no/such-model", "stream": stream}
        response = await api.post(f"{BASE}/chat", json=body)
        await assert_error(response, 422, "unknown_model", param="model")
    assert groq.requests == []


async def test_a_turn_continues_after_its_client_disconnects(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 20
    response, _ = await start_stream(api)
    response.close()

    async def is_answered() -> bool:
        return len(await history(api)) == 2

    await wait_until(is_answered)
    answer = (await history(api))[1]
    assert answer["content"].endswith("Messages received: 1.")
    assert "status" not in answer


async def test_with_on_disconnect_cancel_a_disconnect_stops_the_stream(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 200
    response, _ = await start_stream(api, on_disconnect="cancel")
    delta = await anext(read_events(response))
    response.close()

    async def is_answered() -> bool:
        return len(await history(api)) == 2

    await wait_until(is_answered)
    answer = (await history(api))[1]
    assert answer["status"] == "incomplete"
    assert answer["finish_reason"] == "stopped"
    assert answer["content"].startswith(delta.data["text"])
    assert not answer["content"].endswith("received: 1.")


async def test_with_on_disconnect_cancel_a_disconnect_stops_a_plain_turn(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.latency_ms = 20_000
    body = {"message": "Hello", "session_id": "s", "on_disconnect": "cancel"}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(api.post(f"{BASE}/chat", json=body), 0.5)
    (user_message,) = await history(api)
    events = await all_events(await api.get(f"{BASE}/chat/{user_message['id']}/events"))
    assert (events[-1].name, events[-1].data["finish_reason"]) == ("done", "stopped")
    groq.options.latency_ms = 0
    response = await (await api.post(f"{BASE}/chat", json=body)).json()
    assert (response["finish_reason"], "status" in response) == ("stop", False)


async def test_a_stream_to_an_http_1_0_client_ends_with_its_connection(api: ClientSession) -> None:
    port = (await api.get("/healthz")).url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"message": "Hello", "stream": true}'
    writer.write(
        b"POST /api/groq-chat/chat HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    answer = await asyncio.wait_for(reader.read(), 20)
    assert b"\nevent: done\n" in answer
    writer.close()


async def test_a_retryable_failure_before_the_first_delta_is_retried(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail = "503"
    groq.options.fail_times = 1
    response, _ = await start_stream(api)
    assert (await all_events(response))[-1].name == "done"
    assert len(groq.requests) == 2


@pytest.mark.parametrize("fail", ["500", "drop"])
async def test_the_text_before_a_failure_in_the_stream_is_stored(
    api: ClientSession, groq: MockGroq, fail: Any
) -> None:
    groq.options.fail = fail
    groq.options.fail_after_chunks = 4
    response, _ = await start_stream(api)
    events = await all_events(response)

    assert events[-1].name == "error"
    assert events[-1].data["error"]["code"] == "completion_unavailable"
    answer = (await history(api))[1]
    assert answer["content"] == text_of(events) == "This is the "
    assert (answer["status"], answer["finish_reason"]) == ("incomplete", "error")
    assert len(groq.requests) == 1


async def test_a_stream_of_groq_that_stalls_times_out(serve: Serve, groq: MockGroq) -> None:
    api = await serve(groq_read_timeout_s=0.3)
    groq.options.fail = "hang"
    groq.options.fail_after_chunks = 2
    response, _ = await start_stream(api)
    events = await all_events(response)
    assert events[-1].data["error"]["code"] == "completion_timeout"
    assert (await history(api))[1]["content"] == text_of(events) == "This "


async def test_without_redis_a_stream_is_sent_and_can_be_resumed(
    serve: Serve, own_redis_server: RedisServer
) -> None:
    api = await serve(redis_url=own_redis_server.url(0), redis_timeout_s=0.5)
    own_redis_server.kill()
    response, start = await start_stream(api)
    events = await all_events(response)
    assert events[-1].data["history_saved"] is False
    again = await api.get(f"{BASE}/chat/{start.data['turn_id']}/events")
    assert text_of(await all_events(again)) == text_of(events)


async def test_an_idle_stream_contains_pings(
    serve: Serve, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "INSPECTION_INTERVAL_S", 0.05)
    monkeypatch.setattr(event_stream, "PING_INTERVAL_S", 0.1)
    groq.options.latency_ms = 1500
    api = await serve()
    response, _ = await start_stream(api)
    assert await response.content.readline() == b": ping\n"
    response.close()


async def test_a_client_that_reads_a_large_event_steadily_is_not_disconnected(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_steadily(client: socket.socket) -> bytes:
        """Read 15 MB per second; return the end of the stream."""
        end = b""
        while data := client.recv(65_536):
            end = (end + data)[-100:]
            if end.endswith(b"\r\n0\r\n\r\n"):
                break
            time.sleep(len(data) / 15_000_000)
        return end

    # The event takes longer than this.
    timeout_s = 0.5
    api = await serve(stream_write_timeout_s=timeout_s)
    with never_reading_client(api_port(await api.get("/healthz")), monkeypatch) as client:
        started = time.monotonic()
        end = await asyncio.to_thread(read_steadily, client)
    assert time.monotonic() - started > 2 * timeout_s
    assert end.endswith(b'"history_saved":true}\n\n\r\n0\r\n\r\n')


async def test_a_client_that_does_not_read_is_disconnected_and_does_not_affect_others(
    serve: Serve,
    groq: MockGroq,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    api = await serve(stream_write_timeout_s=1)
    with never_reading_client(api_port(await api.get("/healthz")), monkeypatch) as client:
        await wait_until(lambda: has_messages(api, 2))
        # The complete answer is stored although the client reads nothing.
        assert len((await history(api))[1]["content"]) == 14_999_999

        async def disconnected() -> bool:
            return "disconnecting a client that does not read" in caplog.text

        await wait_until(disconnected)
        assert await asyncio.to_thread(read_to_end, client) < 15_000_000
    monkeypatch.undo()
    response, _ = await start_stream(api, session_id="other")
    assert (await all_events(response))[-1].name == "done"


def read_to_end(client: socket.socket) -> int:
    """Read a connection to its end and return the number of bytes."""
    client.settimeout(20)
    size = 0
    with suppress(ConnectionResetError):
        while data := client.recv(1 << 20):
            size += len(data)
    return size


async def test_concurrent_streams_do_not_mix(api: ClientSession, groq: MockGroq) -> None:
    groq.options.chunk_ms = 10

    async def stream(number: int) -> None:
        fields = {"message": f"message {number}", "session_id": f"s{number}"}
        response, start = await start_stream(api, **fields)
        events = await all_events(response)
        assert f'"message {number}"' in text_of(events)
        assert events[-1].data["turn_id"] == start.data["turn_id"]

    await asyncio.gather(*(stream(number) for number in range(100)))
