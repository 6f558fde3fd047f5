"""The command line: serve, check, reindex, offline."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from groqchat import __version__
from groqchat.app import groq_place
from groqchat.errors import ConfigurationError, GroqChatError
from groqchat.garbage import collected_when_quiet
from groqchat.logs import configure_logging
from groqchat.offline.options import OfflineOptions, parse_options
from groqchat.offline.server import serve_offline
from groqchat.server import cannot_listen, new_event_loop, serve, stop_signal
from groqchat.services.completions import open_completions
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.settings import Settings, load_settings
from groqchat.storage.connection import visit_redis
from groqchat.storage.guard import guarded
from groqchat.storage.reindex import SCAN_BATCH, reindex
from groqchat.workers import CONFIGURATION_STATUS, serve_workers

OFFLINE_PORT = 5001
# As the setting WORKERS has it.
MAX_WORKERS = 256
# One step of a reindex looks at a thousand keys; a busy server may take its time.
REINDEX_STEP_TIMEOUT_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(options.command(options)) or 0
    except ConfigurationError as error:
        print(f"groqchat: {error}", file=sys.stderr)
        if getattr(options, "worker", False):
            return CONFIGURATION_STATUS
    except GroqChatError as error:
        print(f"groqchat: {error.message} ({error.detail})", file=sys.stderr)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="groqchat", description=__doc__)
    parser.add_argument("--version", action="version", version=f"groqchat {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command, text in (
        ("serve", _serve, "serve the API"),
        ("check", _check, "print the effective settings and test each dependency"),
        ("reindex", _reindex, "list the sessions that exist in Redis, whoever wrote them"),
    ):
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument(
            "--local",
            action="store_true",
            help="where nothing is configured, use an embedded Redis and offline answers",
        )
        added.set_defaults(command=command)
        if command is _serve:
            added.add_argument("--workers", type=_worker_count, help="processes; 0: one a CPU")
            # How a process is started by serve_workers.
            added.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    offline = commands.add_parser("offline", help="serve a stand-in for Groq's API alone")
    offline.add_argument("--host", default="127.0.0.1")
    offline.add_argument("--port", type=int, default=OFFLINE_PORT)
    for name, field in OfflineOptions.model_fields.items():
        offline.add_argument(f"--{name.replace('_', '-')}", help=field.description)
    offline.set_defaults(command=_offline)
    return parser


def _worker_count(text: str) -> int:
    count = int(text)
    if not 0 <= count <= MAX_WORKERS:
        raise ValueError(text)
    return count


def _settings(options: argparse.Namespace) -> Settings:
    settings = load_settings()
    configure_logging(settings.log_level)
    return settings.with_local_defaults() if options.local else settings


async def _serve(options: argparse.Namespace) -> None:
    settings = _settings(options)
    if options.workers is not None:
        settings = settings.model_copy(update={"workers": options.workers})
    if options.worker or settings.workers == 1:
        await serve(settings, as_worker=options.worker)
    else:
        await serve_workers(settings)


async def _check(options: argparse.Namespace) -> int:
    settings = _settings(options)
    for name in Settings.model_fields:
        print(f"{name.upper()}={_shown(getattr(settings, name))}")
    print()
    redis = await _report("Redis", _check_redis(settings))
    groq = await _report("Groq", _check_groq(settings))
    return 0 if redis and groq else 1


async def _report(name: str, check: Any) -> bool:
    try:
        print(f"{name}: {await check}")
    except GroqChatError as error:
        print(f"{name}: FAILED: {error.detail or error.message}")
        return False
    return True


async def _check_redis(settings: Settings) -> str:
    async with visit_redis(settings) as redis:
        async with guarded(settings.redis_timeout_s):
            await redis.ping()
        history = RedisChatService(
            redis, ttl_s=settings.chat_history_ttl, timeout_s=settings.redis_timeout_s
        )
        page = await history.get_all_sessions(limit=1)
    return f"ok at {settings.redis_place}, {page.total_sessions} session(s)"


async def _check_groq(settings: Settings) -> str:
    async with (
        groq_place(settings) as base_url,
        open_completions(settings, base_url) as completions,
    ):
        await completions.models()
    return f"ok at {settings.groq_base_url}"


async def _reindex(options: argparse.Namespace) -> None:
    settings = _settings(options)
    listed = unaddressable = 0
    async with visit_redis(settings) as redis:
        async with guarded(settings.redis_timeout_s):
            total = await redis.dbsize()
        steps = aiter(reindex(redis))
        with tqdm(total=total, unit="key", disable=None) as bar:
            while True:
                async with guarded(REINDEX_STEP_TIMEOUT_S):
                    step = await anext(steps, None)
                if step is None:
                    break
                listed += step.listed
                unaddressable += step.unaddressable
                bar.update(min(SCAN_BATCH, total - bar.n))
            bar.update(total - bar.n)
    print(f"{listed} session(s) listed")
    if unaddressable:
        print(f"{unaddressable} key(s) left out: the API takes no session id such as theirs")


async def _offline(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in OfflineOptions.model_fields}
    behaviour = parse_options({name: value for name, value in given.items() if value is not None})
    stop = stop_signal()
    try:
        async with serve_offline(behaviour, host=options.host, port=options.port) as url:
            print(f"Groq's stand-in answers at {url}", flush=True)
            async with collected_when_quiet(lambda: 0):
                await stop.wait()
    except OSError as error:
        raise cannot_listen(options.host, options.port, error) from error


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return "" if value is None else str(value)
