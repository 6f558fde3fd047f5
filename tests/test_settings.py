"""Settings from the environment and from .env: defaults, errors, secrets."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from groqchat.configuration import given_settings, load_settings
from groqchat.errors import ConfigurationError
from groqchat.settings import Settings


def test_the_defaults_match_the_specification() -> None:
    settings = load_settings()
    assert (
        settings.redis_host,
        settings.redis_port,
        settings.redis_db,
        settings.redis_password,
        settings.chat_history_ttl,
        settings.port,
        settings.groq_default_model,
    ) == ("localhost", 6379, 0, None, 86400, 5000, "openai/gpt-oss-20b")


def test_environment_variables_override_the_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    file.write_text("REDIS_PORT=7000\nREDIS_DB=3   # a comment\nREDIS_PASSWORD=   # empty\n")
    monkeypatch.setitem(Settings.model_config, "env_file", str(file))
    monkeypatch.setenv("REDIS_PORT", "7001")
    monkeypatch.setenv("GROQ_API_KEY", "")

    settings = load_settings()
    assert (settings.redis_port, settings.redis_db) == (7001, 3)
    assert settings.redis_password is None
    assert settings.groq_api_key is None


def test_the_error_names_every_invalid_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", "lots")
    monkeypatch.setenv("CHAT_HISTORY_TTL", "0")
    monkeypatch.setenv("REDIS_URL", "http://user:hunter2@example.org")
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    monkeypatch.setenv("CORS_ALLOWED_ORIGINS", "https://good.example, example.org/path")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()

    named = {line.split(":")[0] for line in str(raised.value).splitlines()}
    assert named == {
        "REDIS_PORT",
        "CHAT_HISTORY_TTL",
        "REDIS_URL",
        "LOG_LEVEL",
        "CORS_ALLOWED_ORIGINS",
    }
    lines = str(raised.value).splitlines()
    assert "REDIS_PORT: must be a whole number" in lines
    assert "CHAT_HISTORY_TTL: must be at least 1" in lines
    assert "LOG_LEVEL: must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'" in lines
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://h/mymaster",
        "redis+cluster://h",
        "embedded:",
        "memory",
        "unix:",
        "unix://",
        "redis://host/name",
        "redis://host:port",
        "redis://host:99999",
        "redis://host..example",
        "rediss://ho st",
        "redis://[::1",
        "redis://:pa#ss@host",
        "redis://host?decode_responses=true",
        "redis://host?db=one",
        "unix:///redis.sock?max_connections=1",
    ],
)
def test_an_invalid_redis_url_is_rejected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(ConfigurationError, match="REDIS_URL") as raised:
        load_settings()
    assert "pa" not in str(raised.value).replace("path", "").replace("password", "")


@pytest.mark.parametrize(
    "name",
    ["CORS_ALLOWED_ORIGINS", "ALLOWED_HOSTS", "TRUSTED_PROXIES", "ROOT_PATH", "PORT", "HOST"],
)
@pytest.mark.parametrize("password", ["hunter2", "hunt@er2"])
def test_an_error_masks_a_password_in_the_wrong_setting(
    name: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"https://user:{password}@example.org/x")
    with pytest.raises(ConfigurationError, match=name) as raised:
        load_settings()
    assert "user" not in str(raised.value)
    assert "er2" not in str(raised.value)


def test_secrets_are_not_part_of_any_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk_hunter2")
    monkeypatch.setenv("REDIS_PASSWORD", "hunter2")
    monkeypatch.setenv("REDIS_URL", "redis://user:hunter2@example.org:7000/2")
    settings = load_settings()

    assert "hunter2" not in f"{settings!r} {settings} {settings.redis_address}"
    assert settings.redis_address == "example.org:7000"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("rediss://:hunter2@example.org", "example.org:6379"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock"),
        ("unix://user:hunter2@/run/redis.sock", "unix:///run/redis.sock"),
        ("embedded:.data/redis", "embedded:.data/redis"),
        ("memory:", "memory:"),
    ],
)
def test_the_redis_address_contains_no_credentials(
    url: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    assert load_settings().redis_address == address


@pytest.mark.parametrize(
    ("url", "effective"),
    [
        ("https://api.groq.com/openai/v1/", "https://api.groq.com"),
        ("http://proxy.example:8080", "http://proxy.example:8080"),
        ("offline:?latency_ms=3", "offline:?latency_ms=3"),
        (" https://api.groq.com\n", "https://api.groq.com"),
        ("https://gateway.example/groq/", "https://gateway.example/groq"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_a_groq_base_url_is_converted_to_the_form_that_the_sdk_expects(
    url: str, effective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_BASE_URL", url)
    assert load_settings().groq_base_url == effective


@pytest.mark.parametrize(
    "url",
    [
        "api.groq.com",
        "ftp://api.groq.com",
        "offline:latency_ms=3",
        "https://user:secret@api.groq.com",
        "https://api.groq.com:99999",
        "https://gateway.example/groq?tenant=1",
        "https://gateway.example/#groq",
        "https://gateway..example",
        "https://gate way.example",
        f"https://{'a' * 64}.example",
    ],
)
def test_an_invalid_groq_base_url_is_rejected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_BASE_URL", url)
    with pytest.raises(ConfigurationError, match="GROQ_BASE_URL"):
        load_settings()


@pytest.mark.parametrize("name", ["HOST", "REDIS_HOST"])
@pytest.mark.parametrize(
    ("host", "effective"),
    [
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        (" localhost\n", "localhost"),
        ("redis_1.example.org.", "redis_1.example.org."),
        ("b\u00fccher.example", "b\u00fccher.example"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_a_host_is_a_name_or_an_address(
    name: str, host: str, effective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, host)
    assert getattr(load_settings(), name.lower()) == effective


@pytest.mark.parametrize("name", ["HOST", "REDIS_HOST"])
@pytest.mark.parametrize(
    "host",
    ["not..a.host", "a" * 64, "a b", "127.0.0.1:5000", "[::1]:5000", "http://host", "*", "ho\tst"],
)
def test_a_host_that_cannot_be_resolved_is_rejected(
    name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, host)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert str(raised.value) == f"{name}: must be a host name or an IP address, without a port"


def test_local_defaults_apply_only_to_settings_that_are_not_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unconfigured = load_settings().with_local_defaults()
    monkeypatch.setenv("REDIS_HOST", "redis.example")
    monkeypatch.setenv("GROQ_API_KEY", "gsk_key")
    configured = load_settings().with_local_defaults()

    assert (unconfigured.redis_address, unconfigured.groq_base_url) == (
        "embedded:.data/redis",
        "offline:?chunk_ms=20",
    )
    assert configured.redis_address == "redis.example:6379"
    assert configured.groq_base_url == "https://api.groq.com"


@pytest.mark.parametrize("name", ["REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD", "REDIS_URL"])
def test_one_configured_redis_variable_prevents_the_local_default(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "redis://localhost" if name == "REDIS_URL" else "7")
    assert load_settings().with_local_defaults().redis_address.startswith("localhost:")


def test_blank_secrets_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "  ")
    monkeypatch.setenv("GROQ_API_KEY", " ")
    settings = load_settings()
    assert (settings.redis_password, settings.groq_api_key) == (None, None)


@pytest.mark.parametrize("key", ["gsk_x\n", "gsk_x\r\n", "\t gsk_x "])
def test_white_space_around_the_api_key_is_removed(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that contains a key usually ends with a line break."""
    monkeypatch.setenv("GROQ_API_KEY", key)
    settings = load_settings()
    assert settings.groq_api_key == SecretStr("gsk_x")
    assert given_settings(groq_api_key=SecretStr(key)).groq_api_key == SecretStr("gsk_x")


@pytest.mark.parametrize(
    "key", ["gsk_\nhunter2", "gsk_\thunter2", "gsk_\x7fhunter2", "\ufeffgsk_hunter2", "hunter2-ü"]
)
def test_an_api_key_that_a_header_cannot_contain_is_rejected(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", key)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert str(raised.value) == (
        "GROQ_API_KEY: must contain only printable ASCII characters, on one line"
    )


def test_white_space_is_part_of_a_redis_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", " pass\tword ")
    assert load_settings().redis_password == SecretStr(" pass\tword ")


def test_cors_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ALLOWED_ORIGINS", "https://a.example, http://localhost:3000,")
    assert load_settings().cors_allowed_origins == ("https://a.example", "http://localhost:3000")


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc] # the test assigns to a frozen field
