"""Every example of docs/frontend.md runs in Node, as the page shows it, against the service."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientSession
from yarl import URL

from groqchat.http.cors import EXPOSED_HEADERS
from groqchat.settings import Settings
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.browser import BadNetwork, Browser
from tests.support.groq import MockGroq
from tests.support.streams import history

PAGE = (Path(__file__).parent.parent / "docs" / "frontend.md").read_text(encoding="utf-8")
CHAT_TS = "// chat.ts\n"
SEED = "Send a message and load the history"
VITE = "During development: a proxy"
RELOAD = "Resume after a page reload"
STOP = "Stop a turn"
RETRY = "Retry a message"

ANSWER = (
    'This is the mock Groq server, not a model. You said: "What is Python?". Messages received: 1.'
)
NO_TURN = "0000000000000dead"


@dataclass(frozen=True)
class Example:
    """A code block, and the output that the page shows below it."""

    heading: str
    code: str
    output: str


def examples() -> list[Example]:
    found = []
    for section in re.split(r"^#+ ", PAGE, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"```[tj]s\n(.*?)```(?:\n\n```text\n(.*?)```)?", section, re.DOTALL)
        found += [Example(section.partition("\n")[0], *block) for block in blocks]
    return found


MODULE = "".join(each.code for each in examples() if each.code.startswith(CHAT_TS))
PROGRAMS = {each.heading: each for each in examples() if not each.code.startswith(CHAT_TS)}


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """A browser with the modules of the page."""
    return Browser(tmp_path, {"chat.ts": MODULE, "vite.config.ts": PROGRAMS[VITE].code})


@pytest.fixture
def url(api: ClientSession) -> URL:
    """The URL of the service."""
    return url_of(api)


def url_of(api: ClientSession) -> URL:
    assert api._base_url is not None
    return api._base_url


def test_every_example_has_a_test() -> None:
    assert [heading for heading, each in PROGRAMS.items() if not each.output] == [
        SEED,
        VITE,
        RELOAD,
    ]
    assert len(PROGRAMS) + MODULE.count(CHAT_TS) == len(examples())


@pytest.mark.parametrize(
    "heading", [heading for heading, each in PROGRAMS.items() if each.output and heading != STOP]
)
async def test_an_example_prints_the_output_on_the_page(
    heading: str, url: URL, browser: Browser
) -> None:
    assert await browser.run(PROGRAMS[heading].code, url) == PROGRAMS[heading].output


async def test_the_example_that_stops_a_turn_prints_the_output_on_the_page(
    url: URL, groq: MockGroq, browser: Browser
) -> None:
    groq.options.chunks, groq.options.chunk_ms = 1000, 20
    assert await browser.run(PROGRAMS[STOP].code, url) == PROGRAMS[STOP].output


async def test_the_example_of_the_seed_continues_its_session_on_each_page_load(
    url: URL, browser: Browser
) -> None:
    report = "console.log(JSON.stringify({ sessionId, answer: await response.json(), messages }))"
    code = f"{PROGRAMS[SEED].code}\n{report}"
    first = json.loads(await browser.run(code, url))
    second = json.loads(await browser.run(code, url))

    assert re.fullmatch(r"session-\d+", first["sessionId"])
    assert second["sessionId"] == first["sessionId"] == second["answer"]["session_id"]
    assert first["answer"]["message"] == ANSWER
    assert second["messages"][:2] == first["messages"]
    assert [message["content"] for message in second["messages"]] == [
        "What is Python?",
        ANSWER,
        "What is Python?",
        second["answer"]["message"],
    ]


async def test_the_proxy_of_vite_forwards_the_api_to_the_default_address(
    url: URL, browser: Browser
) -> None:
    report = "console.log(JSON.stringify(config))"
    printed = await browser.run(f"import config from './vite.config.ts'\n{report}", url)

    target = f"http://localhost:{Settings().port}"
    assert json.loads(printed) == {"server": {"proxy": {"/api": target}}}
    assert BASE.startswith("/api/")


async def test_cors_allows_the_origins_and_exposes_the_headers_on_the_page(serve: Serve) -> None:
    (origins,) = re.findall(r"^CORS_ALLOWED_ORIGINS=(.*)$", PAGE, flags=re.MULTILINE)
    cells = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    documented = re.findall(r"`([\w-]+)`", " ".join(cells))
    assert sorted(documented) == sorted(EXPOSED_HEADERS)

    api = await serve(cors_allowed_origins=origins)
    for origin in origins.split(","):
        response = await api.get(f"{BASE}/sessions", headers={"Origin": origin})
        assert response.headers["Access-Control-Allow-Origin"] == origin
        exposed = response.headers["Access-Control-Expose-Headers"].split(",")
        assert sorted(exposed) == sorted(documented)


async def test_the_parser_reads_any_text_in_chunks_of_any_size(url: URL, browser: Browser) -> None:
    text = 'Grüße 😀 "\\": \u2028\n\ndata: x'
    code = f"""
        import {{ post, readEvents }} from './chat.ts'
        const response = await post('/chat', {{ message: {json.dumps(text)}, stream: true }})
        const texts = []
        for await (const {{ id, name, data }} of readEvents(response)) {{
            if (name === 'delta') texts.push(data.text)
            if (name === 'done') console.log(JSON.stringify({{ id, texts, message: data.message }}))
        }}
    """
    async with BadNetwork(url, bytes_per_write=1).open() as slow_url:
        printed = json.loads(await browser.run(code, slow_url))
    assert printed["message"] == ANSWER.replace("What is Python?", text)
    assert "".join(printed["texts"]) == printed["message"]
    assert int(printed["id"]) == len(printed["texts"]) + 2


async def test_event_source_continues_after_a_lost_connection(
    url: URL, groq: MockGroq, browser: Browser
) -> None:
    groq.options.chunk_ms = 20
    network = BadNetwork(url, cuts=[b"id: 2\n", b"id: 4\n", b"id: 7\n"])
    example = PROGRAMS["Resume with EventSource"]
    async with network.open() as bad_url:
        assert await browser.run(example.code, bad_url) == example.output
    assert network.last_event_ids == [None, "3", "6"]


FOLLOW = """
    import { followTurn, post, readEvents } from './chat.ts'
    const response = await post('/chat', { message: 'What is Python?', stream: true })
    const { value: start } = await readEvents(response).next()
    try {
        await followTurn(start.data.turn_id, () => {})
    } catch (error) {
        console.log(error.constructor.name, error.status, error.code)
    }
"""


async def test_event_source_rejects_with_the_error_of_a_failed_turn(
    url: URL, groq: MockGroq, browser: Browser
) -> None:
    groq.options.fail, groq.options.fail_after_chunks = "503", 2
    assert await browser.run(FOLLOW, url) == "ChatError 502 completion_unavailable\n"


async def test_event_source_rejects_if_there_is_no_turn(url: URL, browser: Browser) -> None:
    code = FOLLOW.replace("start.data.turn_id", f"'{NO_TURN}'")
    assert await browser.run(code, url) == "Error undefined undefined\n"


async def test_a_reloaded_page_continues_the_turn(
    url: URL, groq: MockGroq, browser: Browser
) -> None:
    groq.options.chunk_ms = 50
    code = PROGRAMS[RELOAD].code
    page = await browser.start(code, url)
    assert page.stdout is not None
    for _ in range(3):
        await page.stdout.readline()
    page.kill()
    await page.communicate()

    *texts, end = (await browser.run(code, url)).splitlines()
    assert end == "resumed: stop"
    assert texts[-1] == ANSWER
    assert len(texts) > 1
    for text, longer in itertools.pairwise(texts):
        assert longer.startswith(text)
        assert longer != text
    assert len(groq.asked) == 1
    # The turn has ended: the next page load sends a message.
    groq.options.chunk_ms = 0
    assert (await browser.run(code, url)).splitlines()[-1] == ANSWER
    assert len(groq.asked) == 2


RESUME = """
    import { resumeTurn } from './chat.ts'
    const turn = { turnId: '%s', lastEventId: '%s', text: 'so far' }
    sessionStorage.setItem('chatTurn', JSON.stringify(turn))
    const texts: string[] = []
    const resumed = await resumeTurn((text) => texts.push(text))
    console.log(JSON.stringify([resumed, texts, sessionStorage.getItem('chatTurn')]))
"""


async def test_a_reloaded_page_learns_that_there_is_nothing_to_resume(
    api: ClientSession, browser: Browser
) -> None:
    body = {"message": "What is Python?", "session_id": "s", "stream": True}
    async with api.post(f"{BASE}/chat", json=body) as response:
        *_, last_id = re.findall(r"^id: (\d+)$", await response.text(), flags=re.MULTILINE)
    turn_id = (await history(api))[0]["id"]
    finished = await browser.run(RESUME % (turn_id, last_id), url_of(api))
    unknown = await browser.run(RESUME % (NO_TURN, last_id), url_of(api))
    assert json.loads(finished) == json.loads(unknown) == [None, ["so far"], None]


async def test_a_message_is_answered_once_if_its_response_is_lost(
    url: URL, groq: MockGroq, browser: Browser
) -> None:
    async with BadNetwork(url, lost_responses=1).open() as bad_url:
        assert await browser.run(PROGRAMS[RETRY].code, bad_url) == PROGRAMS[RETRY].output
    assert len(groq.asked) == 1


async def test_a_message_is_sent_again_after_retry_after(
    serve: Serve, groq: MockGroq, browser: Browser
) -> None:
    groq.options.fail, groq.options.fail_times, groq.options.retry_after_s = "429", 1, 1
    api = await serve(groq_max_retries=0)
    assert await browser.run(PROGRAMS[RETRY].code, url_of(api)) == PROGRAMS[RETRY].output
    assert len(groq.asked) == 2


async def test_an_error_that_no_retry_can_fix_is_thrown_at_once(url: URL, browser: Browser) -> None:
    code = """
        import { sendWithRetry } from './chat.ts'
        try {
            await sendWithRetry({ message: ' ' })
        } catch (error: any) {
            console.log(error.status, error.code)
        }
    """
    assert await browser.run(code, url) == "422 invalid_field\n"
