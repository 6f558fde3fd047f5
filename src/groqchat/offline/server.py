"""The stand-in for Groq's API: an aiohttp application that speaks its wire protocol."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import orjson
from aiohttp import hdrs, web
from pydantic import ValidationError

from groqchat.offline import wire
from groqchat.offline.answers import OfflineAnswer, answer_to, call_of
from groqchat.offline.options import MAX_WAIT_MS, OfflineOptions

COMPLETIONS_PATH = "/openai/v1/chat/completions"
MODELS_PATH = "/openai/v1/models"
# A conversation that fills the largest context window, escaped.
MAX_BODY_BYTES = 64 * 1024 * 1024
BACKLOG = 4096
SHUTDOWN_TIMEOUT_S = 1.0

_OPTIONS = web.AppKey("options", OfflineOptions)
_STATUS = {"drop", "hang", "garbage", "empty", "surrogate"}


def create_offline_app(options: OfflineOptions) -> web.Application:
    """Return the application; `options` may be changed while it runs."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[_OPTIONS] = options
    app.router.add_post(COMPLETIONS_PATH, _complete)
    app.router.add_get(MODELS_PATH, _list_models)
    return app


@asynccontextmanager
async def serve_offline(
    options: OfflineOptions, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve the stand-in, by default on a free port of this machine only; gives its URL."""
    runner = web.AppRunner(
        create_offline_app(options), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"http://{bound_host}:{bound_port}"
    finally:
        await runner.cleanup()


async def _list_models(request: web.Request) -> web.Response:
    return _unauthorized(request) or _json(wire.models())


async def _complete(request: web.Request) -> web.StreamResponse:
    """Answer as Groq would, or fail as the options say."""
    unauthorized = _unauthorized(request)
    if unauthorized is not None:
        return unauthorized
    try:
        options = request.app[_OPTIONS].for_request(request.headers)
        asked = wire.WireRequest.model_validate_json(await request.read())
    except ValidationError as error:
        return _json(wire.error(400, _problem(error)), status=400)
    await asyncio.sleep(options.latency_ms / 1000)
    if asked.model not in wire.OWNERS:
        text = f"The model `{asked.model}` does not exist or you do not have access to it."
        return _json(wire.error(404, text), status=404)
    if asked.tool is not None:
        answer = call_of(asked.tool, asked.messages)
    else:
        answer = answer_to(
            asked.messages, asked.token_limit, pieces=options.chunks, as_json=asked.wants_json
        )
    if options.fail is not None and not (asked.stream and options.fail_after_chunks is not None):
        return await _fail(request, options)
    if asked.stream:
        return await _stream(request, answer, asked.model, options)
    return _json(wire.completion(answer, asked.model), headers=wire.RATE_LIMIT_HEADERS)


async def _stream(
    request: web.Request, answer: OfflineAnswer, model: str, options: OfflineOptions
) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={hdrs.CONTENT_TYPE: "text/event-stream", **wire.RATE_LIMIT_HEADERS}
    )
    # A client may leave in mid-answer, as one does that stops it.
    with suppress(ConnectionError):
        await response.prepare(request)
        for index, chunk in enumerate(wire.chunks(answer, model)):
            if options.fail is not None and index == options.fail_after_chunks:
                return await _fail_in_stream(request, response, options)
            if index and options.chunk_ms:
                await asyncio.sleep(options.chunk_ms / 1000)
            await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
    return response


async def _fail(request: web.Request, options: OfflineOptions) -> web.Response:
    """Fail before the first byte."""
    if options.fail == "garbage":
        return web.Response(text="<html>not an answer</html>", content_type="text/html")
    if options.fail == "empty":
        return _json({"id": "chatcmpl-0", "object": "chat.completion", "choices": []})
    if options.fail == "surrogate":
        text = b'{"choices":[{"message":{"content":"half \\uD83D"},"finish_reason":"stop"}]}'
        return web.Response(body=text, content_type="application/json")
    if options.fail in _STATUS:
        await _break(request, options)
    status = int(options.fail or 500) if options.fail not in _STATUS else 500
    retry_after_s = options.retry_after_s
    headers = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
    return _json(wire.error(status), status=status, headers={**wire.RATE_LIMIT_HEADERS, **headers})


async def _fail_in_stream(
    request: web.Request, response: web.StreamResponse, options: OfflineOptions
) -> web.StreamResponse:
    """Fail after the first bytes: an error event, as Groq sends it, or a broken connection."""
    if options.fail in _STATUS:
        await _break(request, options)
        return response
    event = orjson.dumps(wire.error(int(options.fail or 500)))
    await response.write(b"event: error\ndata: " + event + b"\n\n")
    return response


async def _break(request: web.Request, options: OfflineOptions) -> None:
    if options.fail == "hang":
        await asyncio.sleep(MAX_WAIT_MS / 1000)
    if request.transport is not None:
        request.transport.abort()


def _unauthorized(request: web.Request) -> web.Response | None:
    kind, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return None
    return _json(wire.error(401), status=401)


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"'{'.'.join(str(part) for part in first['loc'])}' : {first['msg']}"


def _json(
    body: dict[str, object], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )
