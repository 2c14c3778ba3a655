"""The wheel holds all that the two commands need: installed elsewhere, they work from an empty folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, run_process

pytestmark = pytest.mark.slow

COMMANDS = {"fine-tuning-llm": "fine_tuning_llm", "fine-tuning-llm-inference": "inference"}


def pip(*words) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, words), "--no-deps", "--no-index", "--quiet"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without the network from a copy of the sources: a build leaves folders beside them."""
    source, built = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns(".*", "__pycache__", "tests", "docs", "build", "*.egg-info", "checkpoints")
    shutil.copytree(ROOT, source, ignore=leave)
    pip("wheel", "--no-build-isolation", "--wheel-dir", built, source)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--target", folder, wheel)
    return folder


@pytest.fixture
def call(installed, tmp_path):
    """Runs a command of the wheel, or Python, in an empty folder: it sees nothing of the sources."""

    def run(*words) -> subprocess.CompletedProcess:
        program, *arguments = words
        own = [sys.executable] if program == "python" else [installed / "bin" / program]
        return run_process([*own, *arguments], tmp_path, PYTHONPATH=str(installed))

    return run


def test_the_wheel_holds_every_file_of_the_package_the_scripts_and_the_default_configuration(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        config = archive.read("finetune/training/ds_config.json")
    package = [path for path in (ROOT / "finetune").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(ROOT).as_posix() for path in package} - names == set()
    assert {f"{module}.py" for module in COMMANDS.values()} <= names
    assert {"finetune/py.typed", "finetune/reports/report.html.j2"} <= names
    assert config == (ROOT / "ds_config.json").read_bytes()
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "setup.py"))]


def test_the_wheel_requires_the_pinned_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    wanted = {line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")}
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {one for one in wanted if ";" not in one} == {pin for pin in pins if pin and pin[0] != "#"}
    extras = {path.stem.removeprefix("requirements-") for path in ROOT.glob("requirements-*.txt")} - {"dev"}
    given = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    assert given == extras


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_exit_codes_come_through(command, call, installed):
    done = call(command, "--help")
    assert done.returncode == 0 and "--cpu" in done.stdout and f"usage: {command} [" in done.stdout
    done = call(command, "--no_such_flag")
    assert done.returncode == 2 and "--no_such_flag" in done.stderr
    module = COMMANDS[command]
    done = call("python", "-c", f"import {module}; print({module}.__file__)")
    assert done.stdout.strip() == str(installed / f"{module}.py")


def test_a_question_is_answered_and_an_exam_reported(call, model_dir, exam_dir, tmp_path):
    source = ("fine-tuning-llm-inference", "--model_path", model_dir, "--cpu")
    done = call(*source, "--question", "天地玄黃？", "--options", "A:地 B:玄黃", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["answer"] in ("A", "B")
    done = call(*source, "--exam", exam_dir, "--report", "report")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "<html" in (tmp_path / "report/index.html").read_text(encoding="utf-8")


def test_training_finds_the_default_configuration_of_deepspeed(call):
    done = call("fine-tuning-llm", "--demo", "--engine", "deepspeed", "--cpu", "--dry_run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["ds_config"] == json.loads((ROOT / "ds_config.json").read_text())
