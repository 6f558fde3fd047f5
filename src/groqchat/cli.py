"""The command line: serve, check, reindex, offline."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from groqchat import __version__
from groqchat.app import groq_base_url_of
from groqchat.configuration import env_file, ineffective_variables, load_settings, sources
from groqchat.errors import ConfigurationError, GroqChatError, HistoryFailed
from groqchat.offline.options import (
    MockGroqAddress,
    MockGroqOptions,
    parse_address,
    parse_options,
)
from groqchat.offline.server import serve_mock_groq
from groqchat.runtime.gc_tuning import tuned_gc
from groqchat.runtime.logs import configure_logging, report_failure
from groqchat.runtime.server import listen_error, new_event_loop, serve, stop_signal
from groqchat.runtime.workers import CONFIGURATION_STATUS, decode_settings, serve_workers
from groqchat.services.groq.client import open_groq_client
from groqchat.services.groq.model_catalog import parse_models
from groqchat.services.history_store import HistoryStore
from groqchat.settings import Settings
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.connection import attach_redis
from groqchat.storage.errors import redis_errors
from groqchat.storage.reindex import SCAN_BATCH, reindex
from groqchat.storage.write_probe import OK
from groqchat.urls import masked_url

SERVE_OPTIONS = {
    "host": "address to listen on",
    "port": "port to listen on; 0: any free port",
    "workers": "number of processes; 0: one for each CPU",
}
# One step scans a thousand keys; a busy server may need several seconds.
REINDEX_STEP_TIMEOUT_S = 30.0

log = logging.getLogger("groqchat")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(options.command(options)) or 0
    except ConfigurationError as error:
        report_failure(str(error))
        if getattr(options, "worker", False):
            return CONFIGURATION_STATUS
    except GroqChatError as error:
        report_failure(f"{error.message} ({error.detail})")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="groqchat", description=__doc__)
    parser.add_argument("--version", action="version", version=f"groqchat {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command, description in (
        ("serve", _serve, "serve the API"),
        ("check", _check, "print the effective settings and test each dependency"),
        ("reindex", _reindex, "add every session that exists in Redis to the list of sessions"),
    ):
        added = commands.add_parser(name, help=description, description=description)
        added.add_argument(
            "--local",
            action="store_true",
            help="use the embedded server and the mock Groq server if none is configured",
        )
        added.set_defaults(command=command)
        if command is _serve:
            for option, text in SERVE_OPTIONS.items():
                added.add_argument(f"--{option}", help=f"{text}; overrides {option.upper()}")
            # Used by serve_workers for each worker process.
            added.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    offline = commands.add_parser("offline", help="serve the mock Groq server alone")
    for name, field in (MockGroqAddress.model_fields | MockGroqOptions.model_fields).items():
        offline.add_argument(f"--{name.replace('_', '-')}", help=field.description)
    offline.set_defaults(command=_offline)
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings for a command; its options override the environment."""
    if getattr(options, "worker", False):
        # Unbuffered: the worker waits for the end of its input later.
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:
            settings = decode_settings(pipe.readline())
        configure_logging(settings.log_level, settings.log_format)
        return settings
    settings = load_settings(**_given(options, SERVE_OPTIONS))
    configure_logging(settings.log_level, settings.log_format)
    for warning in ineffective_variables():
        log.warning("%s", warning)
    return settings.with_local_defaults() if options.local else settings


async def _serve(options: argparse.Namespace) -> None:
    settings = _settings(options)
    if options.worker or settings.workers == 1:
        await serve(settings, as_worker=options.worker)
    else:
        await serve_workers(settings)


async def _check(options: argparse.Namespace) -> int:
    settings = _settings(options)
    _print_settings(settings)
    print()
    redis = await _report("Redis", _check_redis(settings))
    groq = await _report("Groq", _check_groq(settings))
    return 0 if redis and groq else 1


def _print_settings(settings: Settings) -> None:
    """Print the settings in the format of `.env`, each with its source unless it is a default."""
    print(f"# .env: {env_file() or f'none in {Path.cwd()}'}")
    origin = sources()
    configured = load_settings()
    for name in Settings.model_fields:
        value = getattr(settings, name)
        shown = _shown(value)
        if name == "redis_url" and settings.redis_url is not None:
            shown = masked_url(settings.redis_url.get_secret_value())
        source = origin.get(name) if value == getattr(configured, name) else "--local"
        print(f"{name.upper()}={shown}" + (f"  # {source}" if source else ""))


async def _report(name: str, check: Any) -> bool:
    try:
        print(f"{name}: {await check}")
    except GroqChatError as error:
        print(f"{name}: FAILED: {error.detail or error.message}")
        return False
    return True


async def _check_redis(settings: Settings) -> str:
    async with attach_redis(settings) as redis:
        async with redis_errors(settings.redis_timeout_s):
            await redis.ping()
        async with CommandBatcher(redis, timeout_s=settings.redis_timeout_s) as batcher:
            history = HistoryStore(
                redis, batcher, ttl_s=settings.chat_history_ttl, timeout_s=settings.redis_timeout_s
            )
            page = await history.get_sessions_page(limit=1)
            state = await history.write_state()
    if state != OK:
        raise HistoryFailed(f"{settings.redis_address}: {state}")
    return f"ok at {settings.redis_address}, {page.total_sessions} session(s)"


async def _check_groq(settings: Settings) -> str:
    async with (
        groq_base_url_of(settings) as base_url,
        open_groq_client(settings, base_url) as groq,
    ):
        parse_models(await groq.list_models())
    return f"ok at {settings.groq_base_url}"


async def _reindex(options: argparse.Namespace) -> None:
    settings = _settings(options)
    listed = unaddressable = 0
    async with attach_redis(settings) as redis:
        async with redis_errors(settings.redis_timeout_s):
            total = await redis.dbsize()
        steps = aiter(reindex(redis))
        with tqdm(total=total, unit="key", disable=None) as bar:
            while True:
                async with redis_errors(REINDEX_STEP_TIMEOUT_S):
                    step = await anext(steps, None)
                if step is None:
                    break
                listed += step.listed
                unaddressable += step.unaddressable
                bar.update(min(SCAN_BATCH, total - bar.n))
            bar.update(total - bar.n)
    print(f"{listed} session(s) listed")
    if unaddressable:
        print(f"{unaddressable} key(s) skipped: their session ids are not valid in the API")


async def _offline(options: argparse.Namespace) -> None:
    address = parse_address(_given(options, MockGroqAddress.model_fields))
    behaviour = parse_options(_given(options, MockGroqOptions.model_fields))
    stop = stop_signal()
    try:
        async with serve_mock_groq(behaviour, host=address.host, port=address.port) as url:
            print(f"the mock Groq server answers at {url}", flush=True)
            async with tuned_gc(lambda: 0):
                await stop.wait()
    except OSError as error:
        raise listen_error(address.host, address.port, error) from error


def _given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, str]:
    """Return the options that the command line contains."""
    values = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return "" if value is None else str(value)
