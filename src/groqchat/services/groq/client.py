"""The Groq client: AsyncGroq with one deadline, one retry policy and cheaper requests."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import TypeVar

import aiohttp
import groq
import httpx
from groq import AsyncGroq
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from groqchat.errors import (
    CompletionNotConfigured,
    CompletionTimeout,
    CompletionUnavailable,
    UnknownModel,
)
from groqchat.openai_paths import COMPLETIONS_PATH, MODELS_PATH
from groqchat.retry import Deadline, Deadlines
from groqchat.services.groq.aiohttp_internals import (
    BufferedResponse,
    RequestTemplate,
    allow_reuse,
    limit_pauses,
    missing_internals,
    note_response,
    read_available,
    read_limited,
)
from groqchat.services.groq.coalescing import Coalescing
from groqchat.services.groq.completions import Completion, Prompt, StreamParser, parse_completion
from groqchat.services.groq.environment_proxy import proxy_of_environment
from groqchat.services.groq.errors import (
    completion_error,
    connection_error,
    is_accepted,
    is_success,
    read_error,
    status_error,
    strip_tracebacks,
)
from groqchat.services.groq.http_session import open_http_session, send_buffered, set_headers
from groqchat.services.groq.rate_limits import RateLimits
from groqchat.services.groq.retries import MAX_RETRY_AFTER_S, GroqRetries
from groqchat.services.groq.retry_after import parse_retry_after
from groqchat.services.groq.service_faults import ServiceFaults
from groqchat.services.groq.stream_end import END_WAIT_S, StreamEnds
from groqchat.settings import Settings
from groqchat.sse import EVENT_END

# How long a request of the OpenAI-compatible endpoint waits for a rate limit. Its clients obey
# `Retry-After` themselves, so this covers only the requests that start one by one after a limit.
MAX_FORWARD_WAIT_S = 1.0
# The mock Groq server accepts any key, but the SDK does not start without one.
NO_KEY = "none"

T = TypeVar("T")


class GroqClient(AsyncGroq):
    """AsyncGroq with requests of its own, each within one deadline that includes its retries.

    The SDK's `create()` builds URL, headers and pydantic models for each call and walks through
    every message, which takes 2.4 to 14 ms of CPU time. The methods of this class take 0.1 ms:
    they send JSON over one aiohttp session, with the SDK's headers, and raise CompletionError.
    The inherited methods of the SDK still work, over the same session.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: Settings,
        *,
        base_url: str,
        uses_proxy: bool = False,
    ) -> None:
        key = settings.groq_api_key
        connect_timeout_s = settings.groq_connect_timeout_s
        timeout = httpx.Timeout(settings.groq_timeout_s, connect=connect_timeout_s)
        super().__init__(
            api_key=key.get_secret_value() if key else NO_KEY,
            base_url=base_url,
            timeout=timeout,
            # `_request` retries. The SDK would sleep for up to a minute if Groq requests that.
            max_retries=0,
            http_client=httpx.AsyncClient(transport=AiohttpTransport(client=session)),
        )
        self.is_configured = key is not None or settings.is_offline
        self._allowed_models: Collection[str] = frozenset(settings.groq_allowed_models)
        self._timeout_s = settings.groq_timeout_s
        self._rate_limits = RateLimits()
        self._retries = GroqRetries(settings.groq_max_retries, self._rate_limits)
        self._read_timeout_s = settings.groq_read_timeout_s
        self._deadlines = Deadlines(settings.groq_timeout_s)
        self._first_byte_deadlines = Deadlines(
            min(settings.groq_first_byte_timeout_s, settings.groq_timeout_s)
        )
        self._faults = ServiceFaults()
        self._stream_ends = StreamEnds()
        # A pause must be short enough for the deadline of the next part.
        window_s = min(settings.stream_coalesce_ms / 1000, self._read_timeout_s / 4)
        self.coalescing = Coalescing(window_s)
        self._session = session
        self._base = str(self.base_url).rstrip("/")
        self._completions_url = URL(f"{self._base}{COMPLETIONS_PATH}")
        # The session belongs to this client, so the headers need not be passed with each request.
        set_headers(session, self.default_headers)
        self._templates: dict[tuple[str, str], RequestTemplate] = {}
        # aiohttp's public API writes requests for a proxy differently.
        self._uses_templates = not uses_proxy and not missing_internals()
        self._connect_timeout_s = connect_timeout_s
        # `connect` includes name resolution, TLS and the reply of a proxy. Each turn has a
        # connection, so it never includes a wait for a free one.
        self._socket_timeouts = aiohttp.ClientTimeout(
            total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s
        )

    def check_model(self, model: str | None) -> None:
        """Raise UnknownModel if GROQ_ALLOWED_MODELS is set and does not contain the model."""
        if self._allowed_models and model is not None and model not in self._allowed_models:
            raise UnknownModel("not in GROQ_ALLOWED_MODELS", param="model")

    def service_fault(self, status: int, content: bytes) -> CompletionUnavailable | None:
        """Return and log the error for a response of Groq that only the operator can resolve.

        None for any other response. `forward` returns such responses, so its caller checks them.
        """
        return self._faults.check(status, content)

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None) -> Completion:
        """Return the model's answer, within `timeout_s` if given, or raise CompletionError."""
        body = prompt.body()
        # Groq sends the first byte after the last token, so its deadline limits the whole.
        deadlines = self._first_byte_deadlines
        if timeout_s is not None and timeout_s < deadlines.limit_s:
            deadlines = Deadlines(timeout_s)
        content = await self._request(
            lambda: self._send_buffered("POST", COMPLETIONS_PATH, body),
            deadlines,
            model=prompt.model,
        )
        return parse_completion(content, requested_model=prompt.model)

    async def stream(self, prompt: Prompt, parser: StreamParser) -> AsyncGenerator[str, None]:
        """Yield the text of the model's answer as it arrives, or raise CompletionError.

        The headers must arrive within GROQ_FIRST_BYTE_TIMEOUT_S, and each further part within
        GROQ_READ_TIMEOUT_S of the one before. The caller applies GROQ_TIMEOUT_S to the whole,
        because a generator cannot interrupt its caller.
        """
        body = prompt.body(stream=True)
        response = await self._request(
            lambda: self._open_stream(body), self._first_byte_deadlines, model=prompt.model
        )
        pace = self.coalescing.start(response)
        has_text = False
        try:
            while not parser.is_done:
                data = await read_available(response.content)
                text = parser.feed(data or EVENT_END)
                if text:
                    has_text = True
                    yield text
                if parser.finish_reason is not None:
                    limit_pauses(response, min(END_WAIT_S, self._read_timeout_s))
                elif has_text and data:
                    # Many pieces of reasoning may precede the first text.
                    await pace.wait(data)
                if parser.error is not None or not data:
                    break
        except (aiohttp.ClientError, OSError) as error:
            # After a finish reason, only `[DONE]` is missing: the answer is complete.
            if parser.finish_reason is None:
                raise read_error(error) from strip_tracebacks(error)
        finally:
            pace.close()
            if parser.is_done:
                self.release(response)
            else:
                response.close()
        parser.raise_error()
        if parser.finish_reason is None:
            raise CompletionUnavailable("the stream ended before the answer was complete")

    async def forward(self, body: bytes, *, model: str) -> aiohttp.ClientResponse:
        """Send a complete request body; return the response, whatever its status.

        The headers must arrive within GROQ_FIRST_BYTE_TIMEOUT_S. Only connection errors are
        retried. Raises RateLimited if Groq has limited the model before. The caller closes the
        response, and applies `completion_deadline` to this call and to reading the response
        together.
        """
        response = await self._request(
            lambda: self._post(body),
            self._first_byte_deadlines,
            model=model,
            max_wait_s=MAX_FORWARD_WAIT_S,
        )
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            retry_after_s = parse_retry_after(response.headers.get("Retry-After"))
            self._rate_limits.close(model, retry_after_s)
        return response

    def release(self, response: aiohttp.ClientResponse) -> None:
        """Return the connection of a stream that was read up to `[DONE]`, without waiting."""
        self._stream_ends.release(response)

    async def close(self) -> None:
        """Close the client, but not its session."""
        await self._stream_ends.aclose()
        await super().close()

    @contextmanager
    def completion_deadline(self) -> Iterator[Deadline]:
        """Limit a block that receives one completion to GROQ_TIMEOUT_S, or raise CompletionTimeout.

        For a stream that outlives the block, `left_s` of the deadline is what remains.
        """
        try:
            with self._deadlines.start() as deadline:
                yield deadline
        except TimeoutError as error:
            raise CompletionTimeout(f"not complete within {self._timeout_s:g} s") from error

    async def list_models(self) -> bytes:
        """Return the response body of `GET /models`, which is cheap and checks the API key."""
        return await self._request(
            lambda: self._send_buffered("GET", MODELS_PATH), self._first_byte_deadlines
        )

    async def _request(
        self,
        send: Callable[[], Awaitable[T]],
        deadlines: Deadlines,
        *,
        model: str = "",
        max_wait_s: float = MAX_RETRY_AFTER_S,
    ) -> T:
        """Send a request until it succeeds, fails permanently or reaches the deadline.

        If Groq has limited the model, the first attempt waits for up to `max_wait_s`.
        """
        if not self.is_configured:
            raise CompletionNotConfigured("GROQ_API_KEY is not set")
        try:
            with deadlines.start() as deadline:
                if self._rate_limits.by_model:
                    await self._rate_limits.wait(model, max_wait_s=min(max_wait_s, deadline.left_s))
                return await self._send_with_retries(send, deadline, model)
        except TimeoutError as error:
            raise CompletionTimeout(f"no answer within {deadlines.limit_s:g} s") from error
        except groq.GroqError as error:
            if isinstance(error, groq.APIStatusError):
                self._faults.check(error.status_code, error.response.content)
            raise completion_error(error) from error

    async def _send_with_retries(
        self, send: Callable[[], Awaitable[T]], deadline: Deadline, model: str
    ) -> T:
        self._retries.budget.add_request()
        allow_reuse()
        attempt = 0
        while True:
            try:
                result = await send()
            except groq.GroqError as error:
                if not await self._retries.wait(error, attempt, deadline=deadline, model=model):
                    raise
            else:
                if self._rate_limits.by_model and is_accepted(result):
                    self._rate_limits.succeed(model)
                return result
            attempt += 1

    async def _send_buffered(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the body of a 2xx response; raise the SDK's exception for any other status."""
        url = f"{self._base}{path}"
        try:
            if self._uses_templates:
                buffered = await self._template(method, path).send(body)
            else:
                buffered = await send_buffered(
                    self._session,
                    *(method, url, body),
                    timeout=self._socket_timeouts,
                    read_timeout_s=self._read_timeout_s,
                )
        except (aiohttp.ClientError, OSError) as error:
            raise connection_error(method, url, error) from strip_tracebacks(error)
        if is_success(buffered.status):
            return buffered.content
        raise status_error(method, url, buffered)

    async def _open_stream(self, body: bytes) -> aiohttp.ClientResponse:
        """Return a 2xx response to read and close; raise as `_send_buffered` does."""
        response = await self._post(body)
        if is_success(response.status):
            return response
        async with response:
            try:
                content = await read_limited(response.content)
            except (aiohttp.ClientError, OSError) as error:
                url = str(response.url)
                raise connection_error("POST", url, error) from strip_tracebacks(error)
        buffered = BufferedResponse(
            status=response.status, headers=response.raw_headers, content=content
        )
        raise status_error("POST", str(response.url), buffered)

    async def _post(self, body: bytes) -> aiohttp.ClientResponse:
        url = self._completions_url
        try:
            response = await self._session.post(
                url, data=body, timeout=self._socket_timeouts, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError) as error:
            raise connection_error("POST", str(url), error) from strip_tracebacks(error)
        note_response()
        limit_pauses(response, self._read_timeout_s)
        return response

    def _template(self, method: str, path: str) -> RequestTemplate:
        key = (method, path)
        if key not in self._templates:
            self._templates[key] = RequestTemplate(
                self._session,
                method,
                URL(f"{self._base}{path}"),
                connect_timeout_s=self._connect_timeout_s,
                read_timeout_s=self._read_timeout_s,
            )
        return self._templates[key]


@asynccontextmanager
async def open_groq_client(settings: Settings, base_url: str) -> AsyncIterator[GroqClient]:
    """Open the Groq client of the process.

    Without an API key, every request raises CompletionNotConfigured.
    """
    proxy = proxy_of_environment(base_url)
    async with (
        open_http_session(settings.max_concurrent_turns, proxy) as session,
        GroqClient(session, settings, base_url=base_url, uses_proxy=proxy is not None) as client,
    ):
        yield client
