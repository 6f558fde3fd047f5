"""Renames the private parts of redis-py and aiohttp that groqchat uses, as a new version might.

The libraries themselves keep working, because their own source is rewritten when it is imported.
As a pytest plugin (`pytest -p tests.support.renamed_internals`) it must be loaded before them; as
a program it runs the groqchat command line.
"""

import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

# Packages whose modules are rewritten, and the names that change in them.
RENAMED = {
    "redis": ("_reader", "_writer", "_parser", "NOT_ENOUGH_DATA"),
    "fakeredis": ("_reader", "_writer", "_parser"),
    "aiohttp": ("set_response_params", "_get"),
}
PREFIX = "renamed_"


class _RenamingLoader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source; the cache of compiled modules has the original names."""
        names = "|".join(RENAMED[fullname.partition(".")[0]])
        path = self.get_filename(fullname)
        source = re.sub(rf"\b({names})\b", rf"{PREFIX}\1", self.get_data(path).decode())
        code: CodeType = compile(source, path, "exec", dont_inherit=True)
        return code


class _RenamingFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in RENAMED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _RenamingLoader(fullname, spec.loader.path)
        return spec


def rename_internals() -> None:
    """Rewrite the libraries; raise RuntimeError if one of them is imported already."""
    if imported := RENAMED.keys() & sys.modules.keys():
        raise RuntimeError(f"imported already: {sorted(imported)}")
    sys.meta_path.insert(0, _RenamingFinder())


rename_internals()

if __name__ == "__main__":
    from groqchat.cli import main

    sys.exit(main())
