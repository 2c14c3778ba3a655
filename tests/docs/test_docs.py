"""The tutorial: the commands of a page run, in order, in a folder of its own, and make its pictures; or they
are named there as needing a GPU or the hub."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from forked import STEPS, WITH_PICTURES, quick_python
from test_readme import commands, python_blocks

from finetune.cli import inference_checks, train_args

PAGES = (
    "own_exam", "own_texts", "classify", "tag", "span", "seq2seq", "embed", "layers", "textbook", "machines",
    "trust", "drift",
)  # fmt: skip
ILLUSTRATED = (*PAGES, "page")  # which shows pictures of tests/serving/page_pictures.py and runs nothing
WITHOUT_PICTURES = {"embed"}
BEGINNINGS = {".png": b"\x89PNG", ".svg": b"<svg "}  # of pictures
LARGEST = 120_000  # bytes of a picture
LONGEST = 120  # lines of a page
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)]+)\)")
OF_THIS_MACHINE = re.compile(r"/(home|root|work|tmp|Users)\b|[A-Z]:\\")
ENTRIES = "七星潭\ntop 3\nhelp\nq\n"  # for the terminal


def page(name: str, language: str = "") -> str:
    return f"docs/{name}{language}.md"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def both(name: str) -> tuple[str, str]:
    return page(name), page(name, ".zh-TW")


def made_by(picture: str, name: str) -> str:
    """File of a run that a picture of the page comes from: for `pictures/layers/my_x/y.png` my_x/y.png, for a
    screenshot z.html.png z.html."""
    found = Path(picture).relative_to(f"pictures/{name}")
    return str(found.with_suffix("") if found.stem.endswith(".html") else found)


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_hold_the_same_commands_and_pictures(name):
    english, chinese = both(name)
    assert commands(english) == commands(chinese) and commands(english)[0]
    assert python_blocks(english) == python_blocks(chinese)
    for fence in ("text", "sh"):
        blocks = [re.findall(rf"```{fence}\n(.*?)```", text_of(one), re.S) for one in (english, chinese)]
        assert blocks[0] == blocks[1]
    pictures = [[path for _, path in PICTURE.findall(text_of(one))] for one in (english, chinese)]
    assert pictures[0] == pictures[1] and bool(pictures[0]) != (name in WITHOUT_PICTURES)


@pytest.mark.parametrize("name", ILLUSTRATED)
def test_every_picture_is_there_small_described_and_every_link_leads_somewhere(name):
    for one in both(name):
        for described, path in PICTURE.findall(text_of(one)):
            assert described.strip()
            file = ROOT / "docs" / path
            assert file.read_bytes().startswith(BEGINNINGS[file.suffix]) and file.stat().st_size < LARGEST
        for link in LINK.findall(text_of(one)):
            assert link.startswith("https://") or (ROOT / "docs" / link).is_file(), link


def test_no_picture_is_without_a_page():
    shown = {path for name in ILLUSTRATED for _, path in PICTURE.findall(text_of(page(name)))}
    files = [file for file in (ROOT / "docs/pictures").rglob("*") if file.suffix in BEGINNINGS]
    assert {file.relative_to(ROOT / "docs").as_posix() for file in files} == shown


def test_the_figures_of_the_textbook_are_those_that_its_command_draws():
    from transformers import BertConfig

    from finetune.reports import figures

    name = "bert-base-chinese"
    drawn = figures.draw(figures.Subject(BertConfig(vocab_size=21128), name, f"{name} 的 config.json"))
    folder = ROOT / "docs/pictures/textbook/my_figures"
    assert {file.stem: file.read_text(encoding="utf-8") for file in folder.iterdir()} == drawn.files


@pytest.mark.parametrize("name", ILLUSTRATED)
def test_a_page_is_short_and_names_no_path_of_a_machine(name):
    for one in both(name):
        text = text_of(one)
        assert len(text.splitlines()) <= LONGEST
        assert not OF_THIS_MACHINE.search(text)


@pytest.mark.parametrize("name", PAGES)
def test_the_flags_of_commands_that_are_not_run_here_exist(name):
    for line in commands(page(name))[1]:
        if "fine_tuning_llm.py" in line:
            train_args.parse_args(shlex.split(line.partition("fine_tuning_llm.py")[2]))


@pytest.mark.parametrize("name", PAGES)
def test_the_scripts_that_are_not_run_here_are_sound_shell(name):
    for block in re.findall(r"```sh\n(.*?)```", text_of(page(name)), re.S):
        assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).returncode == 0


SHORTENED = "4 steps"  # a training command that names no --max_steps takes so many, and no picture is drawn
RUNS = [
    ("classify", SHORTENED),
    *(pytest.param(name, "to the end", marks=pytest.mark.nightly) for name in PAGES),
]


@pytest.mark.parametrize("name", PAGES)
def test_every_flag_of_every_command_is_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in commands(page(name))[0]:
        for script, parse in (("fine_tuning_llm.py", train_args), ("inference.py", inference_checks)):
            for call in re.findall(rf"python {script} (.*?)(?:$| &| \|\| )", line):
                words = shlex.split(call)
                for at, word in enumerate(words):
                    if word in ("--input", "--embed", "--drift", "--drift_reference"):  # looked for at once
                        Path(words[at + 1]).touch()
                parse.parse_args(words)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), RUNS)
def test_the_commands_of_a_page_run_in_their_order_and_make_its_pictures(name, length, tmp_path):
    for file in ("fine_tuning_llm.py", "inference.py", "finetune", "ds_config.json"):
        (tmp_path / file).symlink_to(ROOT / file)
    (tmp_path / "bin").mkdir()
    ours = quick_python(tmp_path / "bin")
    if length == SHORTENED:
        ours = {key: value for key, value in ours.items() if key != WITH_PICTURES} | {STEPS: length[0]}
    how = {"cwd": tmp_path, "env": ours, "input": ENTRIES, "capture_output": True, "text": True}
    for line in commands(page(name))[0]:
        done = subprocess.run(["bash", "-c", line], timeout=300, **how)
        assert done.returncode == 0, (line, done.stderr[-2000:])
    for block in python_blocks(page(name)):
        done = subprocess.run([sys.executable, "-c", block], timeout=300, **how)
        assert done.returncode == 0, done.stderr[-2000:]
    for _, picture in PICTURE.findall(text_of(page(name))):
        assert (tmp_path / made_by(picture, name)).is_file(), picture
