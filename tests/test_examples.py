"""Every program in examples/ runs against a local service and prints what it promises."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import NODE
from tests.support.service import Service, environment

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = {".py": [sys.executable], ".sh": ["sh"], ".mjs": [str(NODE)]}
MOCK = r'This is the mock Groq server, not a model\. You said: "{}"\. Messages received: {}\.'
CONVERSATION = (
    MOCK.format(r"What is Python\?", 1)
    + r'\nThis is the mock Groq server, not a model\. You said: "And asyncio\?"\. '
    r'Before that you said: "What is Python\?"\. Messages received: 3\.\n'
)
# A pattern for the whole output of each program.
OUTPUT = {
    "chat.sh": r'\{"message":"' + r".*\n\{.*\n" + r'\{"session_id":.*"message_count":4.*\n'
    r'\{"status":"success".*\n',
    "stream_and_resume.py": r"This .*\[connection lost\].*\n\[stop, stored: True\]\n",
    "retry_safely.py": MOCK.format(r"What is an idempotency key\?", 1) + r"\nstored messages: 2\n",
    "openai_session.py": CONVERSATION,
    "langchain_history.py": CONVERSATION,
    "stream.mjs": MOCK.format(r"What is JavaScript\?", 1) + r"\n\[stop\]\n",
    "library.py": r"user: What is Redis\?\nassistant: A data structure server\.\n",
    "load_test.py": r"100 answers, \d+ per second\nmedian \d+\.\d ms, maximum \d+\.\d ms\n",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as `make run` starts it, on a free port."""
    with Service(tmp_path_factory.mktemp("service"), "--local") as service:
        yield service


def run(program: str, service: Service, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the folder in an empty directory."""
    path = EXAMPLES / program
    return subprocess.run(
        [*PROGRAMS[path.suffix], str(path)],
        cwd=directory,
        env=environment(GROQCHAT_URL=service.url, REQUESTS="100"),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("program", OUTPUT)
def test_an_example_prints_its_result(program: str, service: Service, tmp_path: Path) -> None:
    result = run(program, service, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(OUTPUT[program], result.stdout), result.stdout


def test_the_stream_of_javascript_accepts_line_separators(service: Service, tmp_path: Path) -> None:
    """They end a line for regular expressions, but not for server-sent events."""
    source = (EXAMPLES / "stream.mjs").read_text(encoding="utf-8")
    text = "a\u2028b\u2029data: c\x85d"
    (tmp_path / "stream.mjs").write_text(source.replace("What is JavaScript?", text), "utf-8")
    result = run(str(tmp_path / "stream.mjs"), service, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == MOCK.replace("\\", "").format(text, 1) + "\n[stop]\n"


def test_the_load_test_refuses_other_machines(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "load_test.py")],
        cwd=tmp_path,
        env=environment(GROQCHAT_URL="http://192.0.2.1"),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        1,
        "This load test addresses only this machine.\n",
    )


def test_every_example_is_tested_and_in_the_index() -> None:
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in PROGRAMS}
    assert programs == set(OUTPUT)
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[(.+?)\]\(\1\)", index, flags=re.MULTILINE)) == programs
    assert os.access(EXAMPLES / "chat.sh", os.X_OK)
