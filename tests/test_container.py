"""The container files: pinned hashes, hardened containers, limits, Redis with a password."""

import os
import re
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from groqchat.configuration import load_settings
from tests.support.docs import ROOT, read
from tests.support.redis_servers import server_binaries

PROJECT = tomllib.loads(read("pyproject.toml"))
COMPOSE: dict[str, Any] = yaml.safe_load(read("compose.yaml"))
SERVICES: dict[str, Any] = COMPOSE["services"]
LOCKS = ["requirements.lock", "requirements-build.lock"]
PINNED = re.compile(
    r"([\w.-]+)==([\w.]+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)
START_TIMEOUT_S = 10.0


def versions_in(lock: str) -> dict[str, str]:
    """Return the version of each package in a lock."""
    pinned = re.findall(r"^([\w.-]+)==([\w.]+)", read(lock), flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pinned}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_contains_only_versions_with_hashes(lock: str) -> None:
    text = read(lock)
    assert len(PINNED.findall(text)) > 3
    # No address of an index, no comment, no option.
    assert PINNED.sub("", text) == ""


def test_the_locks_contain_every_dependency_within_its_bounds() -> None:
    for lock, requirements in (
        ("requirements.lock", PROJECT["project"]["dependencies"]),
        ("requirements-build.lock", PROJECT["build-system"]["requires"]),
        ("requirements-dev.lock", PROJECT["project"]["optional-dependencies"]["dev"]),
    ):
        versions = versions_in(lock)
        for requirement in map(Requirement, requirements):
            if requirement.name != PROJECT["project"]["name"]:
                assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_the_tests_use_the_versions_of_the_image() -> None:
    assert versions_in("requirements.lock").items() <= versions_in("requirements-dev.lock").items()


def test_the_lock_contains_wheels_for_more_than_one_platform() -> None:
    hashes = {
        name: text.count("--hash") for name, _, text in PINNED.findall(read("requirements.lock"))
    }
    # A release of these has a wheel for each Python version, system and architecture.
    assert min(hashes[name] for name in ("aiohttp", "orjson", "hiredis", "uvloop")) > 20


def test_the_image_installs_only_files_with_a_known_hash() -> None:
    installs = re.findall(r"pip install ([^\n]*)", read("Dockerfile"))
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes --only-binary :all:" in install or "--no-index" in install
    for file in re.findall(r"^COPY ((?:(?!--from).)*) \S+$", read("Dockerfile"), re.MULTILINE):
        for name in file.split():
            assert (ROOT / name).exists()
            assert f"!{name}\n" in read(".dockerignore")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_hardened_and_has_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_redis_is_reachable_only_from_the_service() -> None:
    redis = SERVICES["redis"]
    assert redis["networks"] == ["redis"]
    assert COMPOSE["networks"]["redis"] == {"internal": True}
    assert "ports" not in redis
    assert not redis["user"].startswith("0")


def test_the_service_and_redis_use_the_same_password(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SERVICES["groqchat"]["environment"]
    assert SERVICES["redis"]["environment"] == {"REDIS_PASSWORD": environment["REDIS_PASSWORD"]}
    for name, value in environment.items():
        monkeypatch.setenv(name, re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value))
    monkeypatch.setenv("REDIS_PASSWORD", "hunter2")
    settings = load_settings()
    assert (settings.redis_url, settings.redis_address) == (None, "redis:6379")
    assert settings.redis_password is not None


@pytest.fixture(params=["", "hunter2", """a"b\\c $HOME `x` 'y' #z"""])
def redis_of_compose(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A server that the command of compose.yaml started: its password and its socket."""
    shell, option, script = SERVICES["redis"]["command"]
    with tempfile.TemporaryDirectory(prefix="groqchat-") as directory:
        socket = Path(directory) / "s"
        started = "exec redis-server - <<EOF\n"
        assert started in script
        program = script.replace(
            started, f"{started}port 0\nunixsocket {socket}\ndir {directory}\n"
        ).replace("exec redis-server", f"exec {server_binaries()['valkey']}")
        with subprocess.Popen(
            [shell, option, program.replace("$$", "$")],
            env={"PATH": os.environ["PATH"], "REDIS_PASSWORD": request.param},
            stdout=subprocess.DEVNULL,
        ) as process:
            try:
                yield request.param, socket
            finally:
                process.terminate()
        assert process.returncode == 0


def connected(socket: Path, password: str | None) -> Redis:
    """A client that does not retry: a wrong password stays wrong."""
    return Redis(unix_socket_path=str(socket), password=password, retry=Retry(NoBackoff(), 0))


def test_the_command_of_compose_starts_redis_with_the_password(
    redis_of_compose: tuple[str, Path],
) -> None:
    password, socket = redis_of_compose
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with connected(socket, password or None) as client:
                assert client.ping()
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                assert client.config_get("appendonly") == {"appendonly": "yes"}
            break
        except RedisConnectionError:
            assert time.monotonic() < deadline
    if password:
        with (
            connected(socket, "wrong") as client,
            pytest.raises(AuthenticationError),
        ):
            client.ping()
