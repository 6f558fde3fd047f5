"""Where settings come from, and warnings for names that have no effect."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from groqchat.configuration import (
    RENAMED,
    env_file,
    ineffective_variables,
    load_settings,
    sources,
)
from groqchat.errors import ConfigurationError
from groqchat.settings import Settings
from groqchat.validation_messages import FALLBACK, message_of

# Names of other programs and of shells that resemble HOST, PORT or WORKERS.
SIMILAR_NAMES = (
    *("HOME", "HOSTNAME", "HOSTS", "HOSTTYPE", "HOT", "PATH", "PORTS", "POST", "SERVICE_PORT"),
    *("SORT", "TRANSPORT", "WEB_PORT", "WORKER", "WORKERS_COUNT", "WEB_WORKERS"),
)


@pytest.fixture
def dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of `.env`, which does not exist yet."""
    path = tmp_path / ".env"
    monkeypatch.setitem(Settings.model_config, "env_file", str(path))
    return path


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("REDIS_PASSWROD", "did you mean REDIS_PASSWORD?"),
        ("redis_hots", "did you mean REDIS_HOST?"),
        ("GROQ_MODEL", "did you mean GROQ_DEFAULT_MODEL?"),
        ("GROQ_APIKEY", "did you mean GROQ_API_KEY?"),
        ("CHAT_TTL", "did you mean CHAT_HISTORY_TTL?"),
        ("REDIS_CLUSTER_NODES", "it is not a setting"),
        ("LOG_LEVL", "did you mean LOG_LEVEL?"),
        ("CORS_ALLOWED_ORIGIN", "did you mean CORS_ALLOWED_ORIGINS?"),
        ("PORTT", "did you mean PORT?"),
        ("PROT", "did you mean PORT?"),
        ("hsot", "did you mean HOST?"),
        ("HOOST", "did you mean HOST?"),
        ("WORKRES", "did you mean WORKERS?"),
        ("MAX_TURNS_IN_FLIGHT", "the setting is now named MAX_CONCURRENT_TURNS"),
        ("STREAM_STALL_S", "the setting is now named STREAM_WRITE_TIMEOUT_S"),
        ("ACCESS_LOG_SHARE", "the setting is now named ACCESS_LOG_SAMPLE_RATE"),
    ],
)
@pytest.mark.parametrize("where", ["the environment", ".env"])
def test_a_variable_that_looks_like_a_setting_causes_a_warning(
    name: str, problem: str, where: str, dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == ".env":
        dotenv.write_text(f"{name}=hunter2\n")
    else:
        monkeypatch.setenv(name, "hunter2")
    assert list(ineffective_variables()) == [f"{name.upper()} in {where} has no effect: {problem}"]


def test_a_directory_in_place_of_the_env_file_causes_a_warning(dotenv: Path) -> None:
    """Docker creates a directory if the file to mount does not exist."""
    dotenv.mkdir()
    assert list(ineffective_variables()) == [".env is a directory and has no effect"]
    assert load_settings().port == 5000
    assert env_file() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_PORT_6379_TCP", "tcp://10.0.0.1:6379"),
        ("REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
        ("REDIS_SERVICE_HOST", "10.0.0.1"),
        ("REDIS_SERVICE_PORT_REDIS", "6379"),
        ("REDIS_MASTER_SERVICE_HOST", "10.0.0.1"),
        ("REDIS_MASTER_PORT", "tcp://10.0.0.1:6379"),
        ("CHAT_WEB_PORT", "tcp://10.0.0.1:80"),
        ("GROQCHAT_SERVICE_HOST", "10.0.0.1"),
        ("REDIS_NAME", "/app/redis"),
        ("REDIS_ENV_GOSU_VERSION", "1.17"),
        ("REDIS_DOWNLOAD_SHA256", "0"),
        ("GROQ_LOG", "debug"),
        ("GROQ_CUSTOM_HEADERS", "X-A: b"),
        *((name, "x") for name in SIMILAR_NAMES),
        ("NODE_ENV", "production"),
        ("redis_host", "redis"),
    ],
)
def test_variables_of_docker_kubernetes_and_other_programs_cause_no_warning(
    name: str, value: str, dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    dotenv.write_text("COMPOSE_PROJECT_NAME=groqchat\n")
    assert list(ineffective_variables()) == []


def test_every_earlier_name_leads_to_a_setting() -> None:
    assert {name.lower() for name in RENAMED.values()} <= set(Settings.model_fields)
    assert not {name.lower() for name in RENAMED} & set(Settings.model_fields)


def test_the_address_that_kubernetes_puts_into_redis_port_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.1:6379")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert str(raised.value) == (
        "REDIS_PORT: must be a port, not an address, which Kubernetes sets for a service named "
        "redis; set REDIS_PORT to the port, or `enableServiceLinks: false` in the pod"
    )


def test_redis_url_makes_the_address_in_redis_port_irrelevant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.1:6379")
    monkeypatch.setenv("REDIS_URL", "redis://redis:6379/0")
    assert load_settings().redis_address == "redis:6379"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"REDIS_HOST=\xff\n", ".env is not encoded in UTF-8"), (None, ".env cannot be read: ")],
)
def test_an_unreadable_env_file_is_a_configuration_error(
    content: bytes | None, problem: str, dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dotenv.write_bytes(content or b"")
    if content is None:
        # The tests may run as root, who may read every file.
        def denied(*args: object, **options: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert str(raised.value).startswith(problem)


def test_the_source_of_each_value_is_known(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (env_file(), sources()) == (None, {})
    dotenv.write_text("REDIS_PORT=7000\nREDIS_DB=3\nLOG_LEVEL=warn\nREDIS_HOST=\nother=1\n")
    monkeypatch.setenv("REDIS_PORT", "7001")
    monkeypatch.setenv("REDIS_DB", "")
    assert env_file() == dotenv
    assert sources() == {"redis_port": "environment", "redis_db": ".env", "log_level": ".env"}
    settings = load_settings()
    assert (settings.redis_port, settings.redis_db, settings.log_level) == (7001, 3, "WARNING")


@pytest.mark.parametrize("level", ["info", "Info", " INFO "])
def test_the_log_level_is_not_case_sensitive(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    assert load_settings().log_level == "INFO"


@pytest.mark.parametrize("value", ["", "nonsense", "-1", "1e999", "1.5", "nan", "10000000000000"])
def test_no_message_of_a_setting_contains_text_of_pydantic(value: str) -> None:
    for name in Settings.model_fields:
        try:
            Settings(**{name: value}, _env_file=None)  # type: ignore[arg-type] # an invalid value
        except ValidationError as error:
            for problem in error.errors(include_input=False):
                message = message_of(problem)
                raw = ("should", "pattern", "Extra inputs", "Value error")
                assert not [text for text in raw if text in message], (name, message)
                assert message != FALLBACK, problem


def test_an_error_that_concerns_several_settings_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROQ_ALLOWED_MODELS", "a/b")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert str(raised.value) == "GROQ_DEFAULT_MODEL is not one of GROQ_ALLOWED_MODELS"


def test_overrides_precede_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    assert load_settings(port="7").port == 7
