"""The mock Groq server: an aiohttp application that implements Groq's API without a model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import orjson
from aiohttp import hdrs, web
from pydantic import ValidationError
from yarl import URL

from groqchat import sse
from groqchat.offline import groq_format
from groqchat.offline.answers import MockAnswer, answer_to, before_stop, tool_call_answer
from groqchat.offline.options import MAX_WAIT_MS, MockGroqOptions
from groqchat.offline.schema_values import SchemaError
from groqchat.openai_paths import COMPLETIONS_PATH, MODELS_PATH

# Fits a conversation that fills the largest context window, with every character escaped.
MAX_BODY_BYTES = 64 * 1024 * 1024
BACKLOG = 4096
SHUTDOWN_TIMEOUT_S = 1.0

_OPTIONS = web.AppKey("options", MockGroqOptions)
# Failures that are not an error status.
_NON_HTTP_FAILURES = {"drop", "hang", "garbage", "empty", "surrogate"}


def create_mock_groq_app(options: MockGroqOptions) -> web.Application:
    """Return the application; its `options` may change while it runs."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[_OPTIONS] = options
    app.router.add_post(COMPLETIONS_PATH, _complete)
    app.router.add_get(MODELS_PATH, _list_models)
    app.router.add_get(MODELS_PATH + "/{model:.+}", _show_model)
    app.router.add_route("*", "/{path:.*}", _unknown_url)
    return app


@asynccontextmanager
async def serve_mock_groq(
    options: MockGroqOptions, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Run the mock Groq server and yield its URL; by default on a free port of 127.0.0.1."""
    runner = web.AppRunner(
        create_mock_groq_app(options), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        bound_host, bound_port = runner.addresses[0][:2]
        yield str(URL.build(scheme="http", host=bound_host, port=bound_port))
    finally:
        await runner.cleanup()


async def _list_models(request: web.Request) -> web.Response:
    return _unauthorized(request) or _json(groq_format.models())


async def _show_model(request: web.Request) -> web.Response:
    name = request.match_info["model"]
    if name not in groq_format.OWNERS:
        return _unauthorized(request) or _json(groq_format.unknown_model(name), status=404)
    return _unauthorized(request) or _json(groq_format.model(name))


async def _unknown_url(request: web.Request) -> web.Response:
    return _json(groq_format.unknown_url(request.method, request.path), status=404)


async def _complete(request: web.Request) -> web.StreamResponse:
    """Return a completion, or fail if the options require it."""
    unauthorized = _unauthorized(request)
    if unauthorized is not None:
        return unauthorized
    try:
        options = request.app[_OPTIONS].for_request(request.headers)
        body = groq_format.ChatCompletionRequest.model_validate_json(await request.read())
    except ValidationError as error:
        return _json(groq_format.error(400, _error_text(error)), status=400)
    await asyncio.sleep(options.latency_ms / 1000)
    if body.model not in groq_format.OWNERS:
        return _json(groq_format.unknown_model(body.model), status=404)
    try:
        answer = _answer(body, options)
    except SchemaError as error:
        return _json(groq_format.error(400, f"Invalid schema: {error}"), status=400)
    return await _respond(request, body, options, answer)


async def _respond(
    request: web.Request,
    body: groq_format.ChatCompletionRequest,
    options: MockGroqOptions,
    answer: MockAnswer,
) -> web.StreamResponse:
    if options.fail is not None and not (body.stream and options.fail_after_chunks is not None):
        return await _fail(request, options)
    if body.stream:
        return await _stream(request, answer, body, options)
    return _json(groq_format.completion(answer, body.model), headers=groq_format.RATE_LIMIT_HEADERS)


def _answer(body: groq_format.ChatCompletionRequest, options: MockGroqOptions) -> MockAnswer:
    tool = body.tool
    if tool is not None:
        return tool_call_answer(tool.name, body.messages, parameters=tool.parameters)
    answer = answer_to(
        body.messages,
        body.token_limit,
        chunk_count=options.chunks,
        as_json=body.wants_json,
        schema=body.answer_schema,
    )
    return before_stop(answer, body.stops)


async def _stream(
    request: web.Request,
    answer: MockAnswer,
    body: groq_format.ChatCompletionRequest,
    options: MockGroqOptions,
) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={hdrs.CONTENT_TYPE: sse.CONTENT_TYPE, **groq_format.RATE_LIMIT_HEADERS}
    )
    # A client that stops a turn disconnects before the end of the answer.
    with suppress(ConnectionError):
        await response.prepare(request)
        chunks = groq_format.chunks(answer, body.model, includes_usage=body.includes_usage)
        for index, chunk in enumerate(chunks):
            if options.fail is not None and index == options.fail_after_chunks:
                return await _fail_in_stream(request, response, options)
            if index and options.chunk_ms:
                await asyncio.sleep(options.chunk_ms / 1000)
            await response.write(sse.encode_event(orjson.dumps(chunk)))
        await response.write(sse.encode_event(b"[DONE]"))
    return response


async def _fail(request: web.Request, options: MockGroqOptions) -> web.Response:
    """Fail before the first byte of the response."""
    if options.fail == "garbage":
        return web.Response(text="<html>not an answer</html>", content_type="text/html")
    if options.fail == "empty":
        return _json({"id": "chatcmpl-0", "object": "chat.completion", "choices": []})
    if options.fail == "surrogate":
        text = b'{"choices":[{"message":{"content":"half \\uD83D"},"finish_reason":"stop"}]}'
        return web.Response(body=text, content_type="application/json")
    if options.fail in _NON_HTTP_FAILURES:
        await _break(request, options)
    status = int(options.fail or 500) if options.fail not in _NON_HTTP_FAILURES else 500
    retry_after_s = options.retry_after_s
    headers = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
    return _json(
        groq_format.error(status),
        status=status,
        headers={**groq_format.RATE_LIMIT_HEADERS, **headers},
    )


async def _fail_in_stream(
    request: web.Request, response: web.StreamResponse, options: MockGroqOptions
) -> web.StreamResponse:
    """Fail during the stream: send an error event, as Groq does, or break the connection."""
    if options.fail in _NON_HTTP_FAILURES:
        await _break(request, options)
        return response
    data = orjson.dumps(groq_format.error(int(options.fail or 500)))
    await response.write(sse.encode_event(data, name="error"))
    return response


async def _break(request: web.Request, options: MockGroqOptions) -> None:
    if options.fail == "hang":
        await asyncio.sleep(MAX_WAIT_MS / 1000)
    if request.transport is not None:
        request.transport.abort()


def _unauthorized(request: web.Request) -> web.Response | None:
    kind, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return None
    return _json(groq_format.error(401), status=401)


def _error_text(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"'{'.'.join(str(part) for part in first['loc'])}' : {first['msg']}"


def _json(
    body: dict[str, object], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )
