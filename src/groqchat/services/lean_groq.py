"""AsyncGroq with a short way out: the request over one aiohttp session, errors as the SDK's."""

from http import HTTPStatus

import aiohttp
import groq
import httpx
from groq import AsyncGroq
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from groqchat.services.connector import Connector
from groqchat.services.prepared_request import PreparedRequest, Reply

# Longer than the pauses in most traffic, shorter than what balancers on the way keep open.
KEEPALIVE_S = 55.0


class LeanGroq(AsyncGroq):
    """AsyncGroq that sends and reads bytes at less than the cost of a plain aiohttp request.

    The SDK builds URL, headers and models anew for each call and walks every message. Here the
    headers are its own, put into a request that is made ready once, and a response other than 2xx
    becomes the exception that the SDK would raise. Everything else of the SDK works as ever, over
    the same connections.
    """

    def __init__(
        self, session: aiohttp.ClientSession, *, api_key: str, base_url: str, timeout: httpx.Timeout
    ) -> None:
        super().__init__(
            api_key=api_key,
            base_url=base_url,
            timeout=timeout,
            # Retries are the caller's, who knows the deadline.
            max_retries=0,
            http_client=httpx.AsyncClient(transport=AiohttpTransport(client=session)),
        )
        self._session = session
        self._origin = str(self.base_url).rstrip("/")
        self._urls: dict[str, URL] = {}
        # As the session's own they need not be merged anew for each request.
        session.headers.update(
            {name: value for name, value in self.default_headers.items() if isinstance(value, str)}
        )
        self._requests: dict[tuple[str, str], PreparedRequest] = {}
        self._connect_timeout_s = timeout.connect
        self._stream_limits = aiohttp.ClientTimeout(
            total=None, sock_connect=timeout.connect, sock_read=timeout.read
        )

    async def exchange(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the body of a 2xx response; raise the SDK's exception for anything else."""
        try:
            reply = await self._prepared(method, path).send(body)
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(method, self._url(path), error) from untraced(error)
        if _is_good(reply.status):
            return reply.content
        raise self._status_error(method, self._url(path), reply)

    async def open_stream(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """Return a 2xx response to read from and to close; raise as `exchange` does."""
        response = await self._request(path, body)
        if _is_good(response.status):
            return response
        async with response:
            try:
                content = await response.read()
            except (aiohttp.ClientError, OSError) as error:
                raise _broken("POST", response.url, error) from untraced(error)
        reply = Reply(status=response.status, headers=response.raw_headers, content=content)
        raise self._status_error("POST", response.url, reply)

    async def relay(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """Return a response whatever its status, to read from and to close."""
        return await self._request(path, body)

    async def _request(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        url = self._url(path)
        try:
            return await self._session.post(
                url, data=body, timeout=self._stream_limits, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError) as error:
            raise _broken("POST", url, error) from untraced(error)

    def _status_error(self, method: str, url: URL, reply: Reply) -> groq.APIError:
        return self._make_status_error_from_response(
            httpx.Response(
                reply.status,
                # What aiohttp has unpacked is not to be unpacked again.
                headers=[
                    (name, value)
                    for name, value in reply.headers
                    if name.lower() not in {b"content-encoding", b"transfer-encoding"}
                ],
                content=reply.content,
                request=httpx.Request(method, str(url)),
            )
        )

    def _prepared(self, method: str, path: str) -> PreparedRequest:
        """Return the request for a path, made ready once."""
        key = (method, path)
        if key not in self._requests:
            self._requests[key] = PreparedRequest(
                self._session, method, self._url(path), connect_timeout_s=self._connect_timeout_s
            )
        return self._requests[key]

    def _url(self, path: str) -> URL:
        """Return the URL of a path, parsed once."""
        if path not in self._urls:
            self._urls[path] = URL(self._origin + path)
        return self._urls[path]


def _is_good(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def _broken(method: str, url: URL, error: Exception) -> groq.APIConnectionError:
    """Return the SDK's exception for a request without a whole response."""
    request = httpx.Request(method, str(url))
    if isinstance(error, TimeoutError):
        return groq.APITimeoutError(request=request)
    return groq.APIConnectionError(request=request)


def untraced(error: BaseException) -> BaseException:
    """Return an error without the frames that it went through.

    Some of those below us hold the error in turn: a circle that only the garbage collector would
    find, with the request's body in it, once for each request that fails.
    """
    found: list[BaseException] = [error]
    for each in found:
        each.__traceback__ = None
        found += [
            other
            for other in (each.__context__, each.__cause__)
            if other is not None and not any(other is known for known in found)
        ]
    return error


def open_session(max_connections: int) -> aiohttp.ClientSession:
    """Return the session of the process: every turn in flight may hold one connection."""
    connector = Connector(limit=max_connections, keepalive_timeout=KEEPALIVE_S)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
