"""The promise of Python: which versions, what is said to an older one, and what is pinned."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = ("fine_tuning_llm.py", "inference.py")
READ_BY_ALL = (*SCRIPTS, "finetune/__init__.py")  # before an older Python has been told
REAL = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))
OLDER = [path for path in REAL if re.search(r"/3\.([6-9]|10)\.", str(path))]
PROMISED = ["3.11", "3.12", "3.13"]


def lines_of(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def refused(done: subprocess.CompletedProcess, version: str) -> bool:
    """One sentence, both languages, nothing else."""
    (line,) = done.stderr.strip().splitlines()
    return f"需要 Python 3.11 以上，這是 {version} (Python 3.11 or newer is needed)" in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_older_python_is_told_in_one_sentence_which_one_is_needed(script):
    """Here this Python, which says it is an older one."""
    code = (
        f"import sys, runpy; sys.version_info = (3, 8, 18); runpy.run_path('{script}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and refused(done, "3.8.18") and not done.stdout


@pytest.mark.parametrize("name", READ_BY_ALL)
def test_what_an_older_python_reads_before_that_holds_no_newer_syntax(name):
    tree = ast.parse("\n".join(lines_of(name)), feature_version=(3, 6))
    futures = [node for node in tree.body if getattr(node, "module", "") == "__future__"]
    assert not futures  # `annotations` came with 3.7
    first = next(node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert first.names[0].name in ("finetune", "sys")


@pytest.mark.skipif(not OLDER, reason="no older Python at hand")
@pytest.mark.parametrize("script", SCRIPTS)
def test_real_older_pythons_say_it(script):
    for python in OLDER:
        done = subprocess.run(
            [python, "-B", ROOT / script], capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"}
        )
        assert done.returncode == 2 and refused(done, python.parts[-3]), python


def test_make_refuses_an_older_python_before_anything_is_installed(tmp_path):
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    code = "sys.version_info = (3, 10, 13); code = sys.argv[2]; sys.argv = sys.argv[2:]; exec(code)"
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c 'import sys; {code}' \"$@\"\n")
    fake.chmod(0o755)
    done = subprocess.run(["make", "install", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and len(said) == 1 and "這是 3.10.13，請用 make PYTHON=" in said[0]
    assert not (tmp_path / ".venv").exists()


def test_the_same_pythons_are_promised_everywhere():
    assert f"PYTHONS := {' '.join(PROMISED)}  #" in "\n".join(lines_of("Makefile"))
    project = "\n".join(lines_of("pyproject.toml"))
    assert 'requires-python = ">=3.11"' in project and 'target-version = "py311"' in project
    for page, words in (("README.md", "Python 3.11 to 3.13"), ("README.zh-TW.md", "Python 3.11 到 3.13")):
        text = "\n".join(lines_of(page))
        assert words in text and text.count("Python 3.") == 1


@pytest.mark.slow
def test_every_package_that_is_imported_is_pinned():
    pins = {
        line.partition("==")[0].lower().replace("-", "_")
        for path in ROOT.glob("requirements*.txt")
        if path.name != "requirements-dev.txt"
        for line in lines_of(path.name)
        if "==" in line
    }
    imported = set()
    for path in [*(ROOT / "finetune").rglob("*.py"), *(ROOT / name for name in SCRIPTS)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    imported -= set(sys.stdlib_module_names) | {"finetune", *(name.removesuffix(".py") for name in SCRIPTS)}
    owners = packages_distributions()
    assert {"numpy", "torch", "yaml", "pydantic"} <= imported
    for name in sorted(imported):
        names = {owner.lower().replace("-", "_") for owner in owners.get(name, [name])}
        assert names & pins, f"{name} is imported, {names} is not pinned"
