"""The distribution: its name, its commands, and the packages that hints tell users to install."""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.docs import PAGES, ROOT, name_of

# On PyPI, the name `groqchat` belongs to another project.
DISTRIBUTION = "groqchat-server"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HINTING_FILES = [
    *PAGES,
    *sorted((ROOT / "src").rglob("*.py")),
    *(ROOT / name for name in ("Makefile", "Dockerfile", "compose.yaml", "pyproject.toml")),
]
# The arguments of a command; a hint in a text ends at a backtick, a quote or a comment.
INSTALL = re.compile(r"\bpip3? install ((?:'[^']*'|[\w.\-\[\]/=<>,]+| +(?=[\w'.\-]))+)")
# Packages of other projects that the service or the examples of the documentation use.
OTHER_PACKAGES = {"fakeredis", "groq", "langchain-openai", "openai", "requests"}


def installed_by(text: str) -> Iterator[str]:
    """Yield the packages that the `pip install` hints of a text name."""
    for arguments in INSTALL.findall(text):
        skip = False
        for argument in re.findall(r"'([^']*)'|(\S+)", arguments):
            name = argument[0] or argument[1]
            if name == "--requirement":
                skip = True
            elif skip:
                skip = False
            elif not name.startswith(("-", ".")) and "/" not in name:
                yield name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(directory)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_has_our_name_and_contains_the_package_and_its_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
        commands = archive.read(metadata_name.replace("METADATA", "entry_points.txt")).decode()
    assert wheel.name.startswith("groqchat_server-")
    assert metadata["Name"] == DISTRIBUTION
    assert commands == "[console_scripts]\ngroqchat = groqchat.__main__:run\n"
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"groqchat"}
    assert "groqchat/py.typed" in names


def test_extras_refer_to_our_own_distribution() -> None:
    extras = PROJECT["optional-dependencies"]
    required = [Requirement(text) for texts in extras.values() for text in texts]
    own = [requirement for requirement in required if requirement.extras & set(extras)]
    assert len(own) >= 2
    assert {requirement.name for requirement in own} == {DISTRIBUTION}


@pytest.mark.parametrize("file", HINTING_FILES, ids=name_of)
def test_an_install_hint_names_only_packages_that_we_know(file: Path) -> None:
    own = {DISTRIBUTION, *OTHER_PACKAGES}
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["embedded"]]
    known = own | {canonicalize_name(Requirement(text).name) for text in texts}
    hints = installed_by(file.read_text(encoding="utf-8"))
    assert [hint for hint in hints if canonicalize_name(Requirement(hint).name) not in known] == []
