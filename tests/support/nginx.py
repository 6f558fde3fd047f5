"""nginx with the configuration of docs/operations.md."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.docs import read

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
TOKEN = "Bearer replace-this-token"
HOST = "chat.example.org"
TEMPORARY_PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
START_TIMEOUT_S = 10.0


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def nginx(directory: Path, replicas: Sequence[int]) -> Iterator[str]:
    """Run nginx in front of replicas on these ports; yield its URL."""
    assert NGINX is not None
    port = free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(_configuration(directory, port, replicas))
    command: list[str | Path] = [
        NGINX,
        "-p",
        directory,
        "-e",
        directory / "nginx.log",
        "-c",
        configuration,
    ]
    process = subprocess.Popen(command)
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)


def _configuration(directory: Path, port: int, replicas: Sequence[int]) -> str:
    """Return the documented configuration without TLS, with a `server` line for each replica."""
    (block,) = re.findall(r"```nginx\n(map .*?)```", read("docs/operations.md"), re.DOTALL)
    (line,) = re.findall(r"^    server .*?;\n", block, re.MULTILINE)
    lines = [line.replace("127.0.0.1:5000", f"127.0.0.1:{each}") for each in replicas]
    http = re.sub(r" *ssl_certificate.*\n", "", block.replace(line, "".join(lines)))
    http = http.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    paths = [f"{name}_temp_path {directory};" for name in TEMPORARY_PATHS]
    return "\n".join(
        [
            "daemon off; master_process off; pid nginx.pid;",
            "events { worker_connections 512; }",
            "http { access_log off;",
            *paths,
            http,
            "}",
        ]
    )


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise AssertionError("nginx has not started")
