"""Connections to Redis: each setting and URL scheme opens the right server."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from groqchat.settings import Settings
from groqchat.storage.connection import open_redis
from tests.support.redis_servers import RedisServer

Address = tuple[str, int]


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
def socket_path(real_servers: dict[str, RedisServer]) -> str:
    """The Unix socket of a real server."""
    return str(real_servers["valkey"].socket)


async def listen(socket_path: str, context: ssl.SSLContext | None) -> asyncio.Server:
    """Listen on a port and forward to the Unix socket of a server, with or without TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(socket_path)
        await asyncio.gather(forward(reader, inner_writer), forward(inner_reader, writer))

    return await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)


@pytest.fixture
async def port(socket_path: str) -> AsyncIterator[int]:
    """The TCP port of a real server."""
    async with await listen(socket_path, None) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def authority() -> trustme.CA:
    """A certificate authority for this test."""
    return trustme.CA()


@pytest.fixture
async def tls_port(socket_path: str, authority: trustme.CA) -> AsyncIterator[int]:
    """The TLS port of a real server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    async with await listen(socket_path, context) as server:
        yield server.sockets[0].getsockname()[1]


async def database_of(redis: Redis) -> int:
    await redis.set("key", "value")
    return int((await redis.client_info())["db"])


async def test_the_redis_variables_of_the_specification_open_a_server(port: int) -> None:
    settings = Settings(redis_host="127.0.0.1", redis_port=port, redis_db=3001)
    async with open_redis(settings) as redis:
        assert await database_of(redis) == 3001


async def test_redis_url_overrides_the_other_redis_variables(port: int) -> None:
    settings = Settings(
        redis_url=f"redis://127.0.0.1:{port}/3002", redis_host="unreachable.invalid", redis_db=5
    )
    async with open_redis(settings) as redis:
        assert await database_of(redis) == 3002


async def test_a_rediss_url_opens_a_server_over_tls(
    tls_port: int, authority: trustme.CA, tmp_path: Path
) -> None:
    certificate = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(certificate))
    url = f"rediss://127.0.0.1:{tls_port}/3003"
    async with open_redis(Settings(redis_url=f"{url}?ssl_ca_certs={certificate}")) as redis:
        assert await database_of(redis) == 3003
    async with open_redis(Settings(redis_url=url)) as redis:
        with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await redis.ping()


@pytest.fixture
async def mutual_tls_port(socket_path: str, authority: trustme.CA) -> AsyncIterator[int]:
    """The TLS port of a real server that requires a certificate of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    async with await listen(socket_path, context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_ssl_password_decrypts_the_key_of_the_client(
    mutual_tls_port: int, authority: trustme.CA, tmp_path: Path
) -> None:
    client = authority.issue_cert("client.example.org")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    key = load_pem_private_key(client.private_key_pem.bytes(), None)
    encryption = BestAvailableEncryption(b"hunter2")
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    )
    files = "&".join(
        f"{option}={tmp_path / name}"
        for option, name in (
            ("ssl_ca_certs", "ca.pem"),
            ("ssl_certfile", "client.pem"),
            ("ssl_keyfile", "key.pem"),
        )
    )
    url = f"rediss://127.0.0.1:{mutual_tls_port}/3005?{files}"
    async with open_redis(Settings(redis_url=f"{url}&ssl_password=hunter2")) as redis:
        assert await database_of(redis) == 3005
    for password in ("", "&ssl_password=wrong"):
        async with open_redis(Settings(redis_url=f"{url}{password}")) as redis:
            # Without a password, OpenSSL would ask for it on the terminal and block the process.
            with pytest.raises(RedisConnectionError):
                await redis.ping()


async def test_a_unix_url_opens_a_unix_socket(socket_path: str) -> None:
    async with open_redis(Settings(redis_url=f"unix://{socket_path}?db=3004")) as redis:
        assert await database_of(redis) == 3004


async def test_a_memory_url_needs_no_server() -> None:
    async with open_redis(Settings(redis_url="memory:")) as redis:
        assert await redis.set("key", "value") is True


async def test_a_connection_that_was_closed_while_idle_is_reopened(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url, redis_max_connections=4)
    async with open_redis(settings) as redis, open_redis(settings) as other:
        await asyncio.gather(*(redis.ping() for _ in range(3)))
        for client in await other.client_list():
            if client["db"] == redis_url.rpartition("=")[2] and client["cmd"] == "ping":
                await other.client_kill_filter(_id=client["id"])
        assert await asyncio.gather(*(redis.ping() for _ in range(3))) == [True] * 3
