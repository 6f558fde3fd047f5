"""GROQ_CUSTOM_HEADERS of the Groq SDK: further headers of the requests to Groq."""

import pytest
from pydantic import SecretStr

from groqchat.errors import ConfigurationError
from groqchat.services.groq.client import open_groq_client
from groqchat.services.groq.completions import Prompt
from groqchat.settings import Settings
from tests.support.groq import MockGroq

PROMPT = Prompt(model="openai/gpt-oss-20b", messages=[{"role": "user", "content": "x"}])


async def test_custom_headers_are_sent_to_groq(
    groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_CUSTOM_HEADERS", "X-Team: a b\nX-Site: c")
    settings = Settings(groq_api_key=SecretStr("gsk_x"), groq_base_url=groq.url)
    async with open_groq_client(settings, groq.url) as client:
        await client.complete(PROMPT)
    sent = groq.headers[-1]
    assert (sent["Authorization"], sent["X-Team"], sent["X-Site"]) == ("Bearer gsk_x", "a b", "c")


@pytest.mark.parametrize("header", ["X-A: hun\rter2", "X-A: hunter2ü", "X hunter2: 1", ": hunter2"])
async def test_a_custom_header_that_is_not_valid_ends_the_start(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_CUSTOM_HEADERS", header)
    with pytest.raises(ConfigurationError) as raised:
        async with open_groq_client(Settings(), "https://groq.test"):
            pass
    assert str(raised.value) == (
        "GROQ_CUSTOM_HEADERS: each line must be a header in printable ASCII, for example X-A: b"
    )
