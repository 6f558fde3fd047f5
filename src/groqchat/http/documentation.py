"""The documentation of the API: built once, compressed once, and cached by browsers."""

import asyncio
import base64
import gzip
import hashlib
import re
import sys
import zlib
from asyncio.subprocess import PIPE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
from aiohttp import ETag, hdrs, web

from groqchat.errors import DocsUnavailable
from groqchat.http.openapi import describe
from groqchat.settings import Settings

RENDER_PAGE = (
    "import sys; from offapi import OpenAPITemplate as Template; "
    "sys.stdout.reconfigure(encoding='utf-8'); "
    "sys.stdout.write(Template.SWAGGER.value.format(spec_url=''))"
)
# Rendering takes 0.5 s on an idle machine.
RENDER_TIMEOUT_S = 30.0
# The error of the program is at the end of its output.
MAX_DETAIL_CHARS = 500
# Relative to the page, so it works behind a proxy that adds a prefix. Swagger UI needs an absolute
# URL to resolve the addresses of the document. Without `validatorUrl`, it calls a public server.
OPTIONS = (
    (b"url: ''", b"url: new URL('openapi.json', location.href).href"),
    (b"dom_id: '", b"validatorUrl: null, dom_id: '"),
)
SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
# Swagger UI sets styles in attributes and loads images from data URLs.
SECURITY_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src 'self' data:; "
    "font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# Stands for the address of the server in the document that is built once for all prefixes.
SERVER_PLACEHOLDER = b"SERVER_URL"
GZIP_LEVEL = 9
# The window size of zlib that adds the header and the checksum of gzip.
GZIP_WINDOW_BITS = 31
REFUSED_GZIP = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedBody:
    """A response body with its compressed form and the headers that belong to it."""

    body: bytes
    compressed: bytes
    etag: str
    content_type: str
    headers: Mapping[str, str]

    @classmethod
    def of(
        cls, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> "CachedBody":
        """Compress a body."""
        return cls(
            body=body,
            compressed=gzip.compress(body, mtime=0),
            etag=_etag(hashlib.sha256(body)),
            content_type=content_type,
            headers=headers or {},
        )

    def response(self, request: web.Request) -> web.Response:
        """Return the response: 304 if the client has this body, else the form it accepts."""
        known = request.if_none_match or ()
        if any(tag.value in {self.etag, "*"} for tag in known):
            response = web.Response(status=304)
        else:
            response = web.Response(body=self.body)
            response.headers[hdrs.CONTENT_TYPE] = self.content_type
            if _accepts_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
                response.body = self.compressed
                response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        # Weak: both forms have one tag.
        response.etag = ETag(value=self.etag, is_weak=True)
        # The client asks each time, because a new version or a new model changes the body.
        response.headers[hdrs.CACHE_CONTROL] = "no-cache"
        response.headers[hdrs.VARY] = hdrs.ACCEPT_ENCODING
        response.headers.update(self.headers)
        return response


class DocumentTemplate:
    """A JSON document whose end contains an address, compressed and hashed up to the address.

    A client can request a document for each of many addresses. Each costs only its end.
    """

    def __init__(self, document: bytes) -> None:
        self._begin, _, self._end = document.rpartition(SERVER_PLACEHOLDER)
        self._hash = hashlib.sha256(self._begin)
        self._compressor = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WINDOW_BITS)
        self._compressed = self._compressor.compress(self._begin)
        # Otherwise most of the work would be left to the copies.
        self._compressed += self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def fill(self, address: str) -> CachedBody:
        """Return the document with an address, which needs no escapes in JSON."""
        end = address.encode() + self._end
        digest, compressor = self._hash.copy(), self._compressor.copy()
        digest.update(end)
        return CachedBody(
            body=self._begin + end,
            compressed=self._compressed + compressor.compress(end) + compressor.flush(),
            etag=_etag(digest),
            content_type="application/json",
            headers={},
        )


class Documentation:
    """The OpenAPI document and the page that shows it."""

    def __init__(self) -> None:
        self._models: Sequence[str] = ()
        self._template: DocumentTemplate | None = None
        self._rendering: asyncio.Task[CachedBody] | None = None

    def openapi(
        self, app: web.Application, settings: Settings, models: Sequence[str], *, prefix: str
    ) -> CachedBody:
        """Return the OpenAPI document, which contains the models and the prefix of its server."""
        if self._template is None or models != self._models:
            document = describe(app, settings, models, server=SERVER_PLACEHOLDER.decode())
            self._models = models
            self._template = DocumentTemplate(orjson.dumps(document))
        return self._template.fill(prefix or "/")

    async def page(self) -> CachedBody:
        """Return the page; concurrent first calls share one rendering. Raises DocsUnavailable."""
        task = self._rendering
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._rendering = asyncio.create_task(_render())
        return await asyncio.shield(task)


DOCUMENTATION = web.AppKey("documentation", Documentation)


async def _render() -> CachedBody:
    # In a separate process, because importing the package takes 50 MB that are never freed.
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RENDER_PAGE, stdout=PIPE, stderr=PIPE
        )
    except OSError as error:
        raise DocsUnavailable(str(error)) from error
    try:
        async with asyncio.timeout(RENDER_TIMEOUT_S):
            page, problems = await process.communicate()
    except TimeoutError as error:
        raise DocsUnavailable(f"no page after {RENDER_TIMEOUT_S} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise DocsUnavailable(problems.decode(errors="replace").strip()[-MAX_DETAIL_CHARS:])
    return await asyncio.to_thread(_complete, page)


def _complete(page: bytes) -> CachedBody:
    for before, after in OPTIONS:
        page = page.replace(before, after, 1)
    scripts = " ".join(_hash(script) for script in SCRIPT.findall(page))
    headers = {
        "Content-Security-Policy": SECURITY_POLICY.format(scripts=scripts),
        "Referrer-Policy": "no-referrer",
    }
    return CachedBody.of(page, "text/html; charset=utf-8", headers)


def _etag(digest: "hashlib._Hash") -> str:
    return digest.hexdigest()[:32]


def _hash(script: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


def _accepts_gzip(accepted: str) -> bool:
    return "gzip" in accepted and not REFUSED_GZIP.search(accepted)
