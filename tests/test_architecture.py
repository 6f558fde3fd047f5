"""The structure of the code is as docs/architecture.md describes it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "groqchat"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.stat().st_size)
EVERY_MODULE = [*MODULES, *sorted(Path(__file__).parent.rglob("*.py"))]

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 50

# A layer may import itself and the layers below it. If two names match a module, the longer one
# is its layer.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"runtime.workers"},
    {"runtime.server"},
    {"runtime.runner"},
    {"runtime.paced_connection"},
    {"runtime.protocol"},
    {
        "runtime.start_log",
        "runtime.bodies",
        "runtime.connections",
        "runtime.parse_errors",
        "runtime.responses",
        "runtime.site",
        "runtime.socket_options",
        "runtime.static_routes",
        "runtime.gc_tuning",
        "runtime.file_limit",
        "runtime.logs",
    },
    {
        "runtime.freed_memory",
        "runtime.phases",
        "runtime.rejections",
        "runtime.unsent_responses",
    },
    {"app"},
    {"routes"},
    {"http"},
    {"services.openai"},
    {"services.turns"},
    {"services.redis_chat_service"},
    {"services.history_store", "services.groq"},
    {"storage", "offline"},
    {
        "address_types",
        "background",
        "configuration",
        "fields",
        "lenient_json",
        "models",
        "openai_paths",
        "retry",
        "secret_types",
        "settings",
        "sse",
        "urls",
        "validation_messages",
    },
    {"errors"},
    {"__init__"},
]
# The modules that every layer uses; they may import each other.
BASE = LAYERS[-3]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WEB_LAYERS = {"runtime", "app", "routes", "http", "offline"}


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE.parent.parent.parent))


def layer_of(module: str) -> str:
    """Return the layer of a module, which is given by its dotted name within the package."""
    parts = module.split(".")
    for count in (2, 1):
        layer = ".".join(parts[:count])
        if layer in LEVEL:
            return layer
    assert module in {"__init__", "__version__"}, f"{module} has no layer"
    return "__init__"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports_of(path: Path) -> Iterator[str]:
    """Return the names that a file imports, at its top level or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            # `import groqchat.x` would hide the use of other modules behind attributes.
            assert not [name for name in names if name.startswith("groqchat")], f"{path}: {names}"
            yield from names
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# The package exports some classes and imports them when they are used.
LAYERED = [path for path in MODULES if path != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", LAYERED, ids=name_of)
def test_a_module_imports_only_its_own_layer_and_lower_layers(path: Path) -> None:
    own = layer_of(module_of(path))
    for imported in imports_of(path):
        package, _, module = imported.partition(".")
        if package == "groqchat":
            layer = layer_of(module)
            is_allowed = LEVEL[layer] > LEVEL[own] or layer == own or {layer, own} <= BASE
            assert is_allowed, f"{path} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_web_layers_import_aiohttps_server(path: Path) -> None:
    imported = set(imports_of(path))
    if path.relative_to(SOURCE).parts[0].removesuffix(".py") not in WEB_LAYERS:
        assert not {name for name in imported if name.startswith("aiohttp.web")}
        assert not re.search(r"\b(aiohttp\.web|import_module\(\"groqchat)\b", path.read_text())


@pytest.mark.parametrize("path", EVERY_MODULE, ids=name_of)
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def test_redis_keys_are_defined_in_one_module() -> None:
    defining = [path.name for path in MODULES if '"chat:' in path.read_text()]
    assert defining == ["keys.py"]


def test_importing_a_module_opens_no_connection_and_starts_no_process_or_thread() -> None:
    names = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in MODULES
        if path.name not in {"__main__.py", "__init__.py"}
    ]
    program = f"""
import socket, subprocess, threading, importlib
def fail(*args, **kwargs): raise AssertionError(args)
socket.socket.connect = socket.socket.bind = subprocess.Popen.__init__ = fail
for name in {names!r}: importlib.import_module(name)
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")
