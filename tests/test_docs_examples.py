"""Every curl command and Python program of the documentation is executed."""

import argparse
import ast
import asyncio
import json
import os
import re
import shlex
import sys
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import ClientSession
from multidict import CIMultiDict
from yarl import URL

from groqchat.settings import LOCAL_GROQ_URL
from tests.conftest import Serve
from tests.support.docs import (
    MESSAGE_ID,
    PAGES,
    ROOT,
    comparable,
    curl_examples,
    name_of,
    python_examples,
    read,
)
from tests.support.raw_groq import STREAM_HEAD, RawGroq, chunked, event

SERVICE_URL = "http://localhost:5000"
# How many curl commands and Python programs each page contains: a block that the patterns do not
# find would be skipped otherwise. Other tests execute the programs of docs/python.md.
EXAMPLES = {
    "README.md": (2, 1),
    "docs/api.md": (8, 1),
    "docs/openai.md": (1, 6),
    "docs/streaming.md": (4, 2),
}
ELLIPSIS = "…"
# Line breaks for `str.splitlines` and for regular expressions, but not for server-sent events.
LINE_SEPARATORS = "a\u2028b\u2029c\x85d"
MOCK_ANSWER = "This is the mock Groq server, not a model. "

Start = Callable[[str], Awaitable[str]]


@pytest.fixture
def start(serve: Serve) -> Start:
    """Start a fresh service with the mock Groq server as a page configures it; gives its URL."""

    async def start_for(page: str) -> str:
        mock = re.search(r"GROQ_BASE_URL='(offline:\S*)' make run", read(page))
        api = await serve(groq_base_url=mock[1] if mock else LOCAL_GROQ_URL, groq_api_key=None)
        return str((await api.get("/healthz")).url.origin())

    return start_for


async def run_curl(command: str) -> str:
    """Return what a curl command prints; curl itself need not be installed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-N", action="store_true")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="data")
    parser.add_argument("-o", dest="output")
    parser.add_argument("-w", dest="write_out", default="")
    parser.add_argument("url")
    options = parser.parse_args(shlex.split(command.replace("\\\n", " "))[1:])
    pairs = [header.partition(": ") for header in options.headers]
    async with (
        ClientSession() as client,
        client.request(
            options.method or ("POST" if options.data else "GET"),
            URL(options.url, encoded=True),
            data=options.data,
            headers=CIMultiDict((name, value) for name, _, value in pairs),
        ) as response,
    ):
        body = await response.text()
        status: str = options.write_out.replace("%{http_code}", str(response.status))
        return status if options.output == "/dev/null" else body + status


async def run_python(code: str, url: str) -> str:
    """Return what a program prints, with the URL of the service in place."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", code.replace(SERVICE_URL, url)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "NO_PROXY": "*"},
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


def assert_contains_events(stream: str, shown: str) -> None:
    """Check that a stream contains the events of a shortened one, in order, with their fields."""
    events = iter(stream.split("\n\n"))
    for block in shown.strip().split("\n\n"):
        name = re.findall(r"^event: \w+$", block, flags=re.MULTILINE)
        actual = next((each for each in events if name and name[0] in each.splitlines()), "")
        assert set(re.findall(r'"\w+":', block)) <= set(re.findall(r'"\w+":', actual)), block


def test_every_example_is_known() -> None:
    found = {
        name_of(page): (len(curl_examples(page)), len(python_examples(page))) for page in PAGES
    }
    found.pop("docs/python.md", None)
    assert {page: counts for page, counts in found.items() if any(counts)} == EXAMPLES
    silent = [
        example.code for page in PAGES for example in curl_examples(page) if not example.output
    ]
    assert silent == []


@pytest.mark.parametrize("page", EXAMPLES)
async def test_curl_commands_return_what_the_page_shows(page: str, start: Start) -> None:
    url = await start(page)
    # Ids of messages differ: those that a page shows, and those of this run.
    ids: dict[str, str] = {}
    for example in curl_examples(ROOT / page):
        command = example.code.replace(SERVICE_URL, url)
        for shown, actual in ids.items():
            command = command.replace(shown, actual)
        output = await run_curl(command)
        if ELLIPSIS in example.output:
            assert_contains_events(output, example.output)
            continue
        assert comparable(output, is_json=example.is_json) == comparable(
            example.output, is_json=example.is_json
        ), example.code
        ids |= zip(MESSAGE_ID.findall(example.output), MESSAGE_ID.findall(output), strict=True)


@pytest.mark.parametrize("page", EXAMPLES)
async def test_python_programs_print_what_the_page_shows(page: str, start: Start) -> None:
    url = await start(page)
    for example in python_examples(ROOT / page):
        printed = await run_python(example.code, url)
        assert printed.strip()
        if example.output:
            assert comparable(printed, is_json=False) == comparable(example.output, is_json=False)


async def test_the_client_that_resumes_a_stream_accepts_line_separators(start: Start) -> None:
    url = await start("docs/streaming.md")
    code = python_examples(ROOT / "docs/streaming.md")[0].code
    code = code.replace("What is Python?", LINE_SEPARATORS)
    code = code.replace(', "max_completion_tokens": 4', "")
    assert LINE_SEPARATORS in await run_python(code, url)


async def test_the_client_that_stops_a_turn_accepts_line_separators(serve: Serve) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event(LINE_SEPARATORS)))
        await asyncio.Event().wait()

    example = python_examples(ROOT / "docs/streaming.md")[1]
    code = example.code + '\nprint(done["message"])'
    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        printed = await run_python(code, str((await api.get("/healthz")).url.origin()))
    assert printed == f"{example.output}{LINE_SEPARATORS}\n"


async def test_the_requests_program_chats_and_lists(start: Start) -> None:
    url = await start("docs/api.md")
    (example,) = python_examples(ROOT / "docs/api.md")
    answer, *history, sessions = (await run_python(example.code, url)).splitlines()
    spoken = f'{MOCK_ANSWER}You said: "Explain machine learning". Messages received: 1.'
    assert ast.literal_eval(answer)["message"] == spoken
    messages = json.loads("".join(history))["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", "Explain machine learning"),
        ("assistant", spoken),
    ]
    assert ast.literal_eval(sessions) == {
        "sessions": ["user-demo-001"],
        "total_sessions": 1,
        "has_more": False,
        "first_id": "user-demo-001",
        "last_id": "user-demo-001",
        "next": None,
    }


async def test_the_readme_program_continues_its_conversation(start: Start) -> None:
    url = await start("README.md")
    (example,) = python_examples(ROOT / "README.md")
    printed = [await run_python(example.code, url) for _ in range(2)]
    first, second = ('You said: "What is Python?".', "Messages received:")
    assert printed == [
        f"{MOCK_ANSWER}{first} {second} 1.\n",
        f'{MOCK_ANSWER}{first} Before that you said: "What is Python?". {second} 3.\n',
    ]
