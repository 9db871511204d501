"""One file that can be copied, and a package that can be installed."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chat_history_client

HERE = Path(__file__).parents[2]
MODULE = HERE / "chat_history_client.py"


@pytest.mark.skipif(sys.version_info < (3, 10), reason="the list of standard modules came with Python 3.10")
def test_the_module_needs_nothing_but_the_standard_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(MODULE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported <= set(sys.stdlib_module_names)


def test_the_module_is_written_for_python_3_9() -> None:
    ast.parse(MODULE.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_a_copied_file_is_all_an_agent_needs(tmp_path: Path) -> None:
    shutil.copy(MODULE, tmp_path)
    code = "import chat_history_client; print(chat_history_client.ChatHistoryClient().stats.pending)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); " + code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "0\n", done.stderr


def test_the_package_installs_and_brings_the_typed_module(tmp_path: Path) -> None:
    if not (importlib.util.find_spec("setuptools") and importlib.util.find_spec("wheel")):
        pytest.skip("setuptools and wheel are not installed")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("chat_history_client.py", "pyproject.toml", "README.md"):
        shutil.copy(HERE / name, source)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            "--target",
            str(tmp_path / "lib"),
            str(source),
        ],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    code = "import chat_history_client as c; print(c.__file__, c.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "%s %s\n" % (tmp_path / "lib" / "chat_history_client.py", chat_history_client.__version__)
