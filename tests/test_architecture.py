"""The house is built as docs/architecture.md says."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "groqchat"
MODULES = sorted(SOURCE.rglob("*.py"))
EVERY_MODULE = [*MODULES, *sorted(Path(__file__).parent.rglob("*.py"))]

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 50

# Each layer may import those below it and itself. A folder's own layers follow after it.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"runtime.workers"},
    {"runtime.server"},
    {"runtime.protocol", "runtime.gc_tuning", "runtime.file_limit", "runtime.logs"},
    {"app"},
    {"routes"},
    {"http"},
    {"services.openai", "services.turns"},
    {"services.redis_chat_service", "services.groq"},
    {"storage", "offline"},
    {"settings", "models", "background", "retry", "sse", "lenient_json", "openai_paths"},
    {"errors"},
    {"__init__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WEB_LAYERS = {"runtime", "app", "routes", "http", "offline"}
# The only modules that may use the private parts of a library.
INTERNALS = {"redis_internals.py", "aiohttp_internals.py"}


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE.parent.parent.parent))


def layer_of(module: str) -> str:
    """Return the layer of a module's dotted name within the package."""
    parts = module.split(".")
    for count in (2, 1):
        layer = ".".join(parts[:count])
        if layer in LEVEL:
            return layer
    return "__init__"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports_of(path: Path) -> Iterator[str]:
    """Return the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    level = LEVEL[layer_of(module_of(path))]
    for imported in imports_of(path):
        package, _, module = imported.partition(".")
        if package == "groqchat":
            assert LEVEL[layer_of(module)] >= level, f"{path} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_web_layers_know_aiohttps_server(path: Path) -> None:
    imported = set(imports_of(path))
    if path.relative_to(SOURCE).parts[0].removesuffix(".py") not in WEB_LAYERS:
        assert not {name for name in imported if name.startswith("aiohttp.web")}


@pytest.mark.parametrize("path", EVERY_MODULE, ids=name_of)
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def test_keys_of_redis_are_named_in_one_module_only() -> None:
    naming = [path.name for path in MODULES if '"chat:' in path.read_text()]
    assert naming == ["keys.py"]


def test_importing_every_module_connects_to_nothing_and_starts_nothing() -> None:
    names = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in MODULES
        if path.name not in {"__main__.py", "__init__.py"}
    ]
    program = f"""
import socket, subprocess, threading, importlib
def refuse(*args, **kwargs): raise AssertionError(args)
socket.socket.connect = socket.socket.bind = subprocess.Popen.__init__ = refuse
for name in {names!r}: importlib.import_module(name)
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")
