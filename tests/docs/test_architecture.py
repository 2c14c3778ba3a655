"""docs/architecture.md: what it names is there, and both languages name the same."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT
from test_docs import LINK, LONGEST
from test_layering import WINGS

PAGES = ("docs/architecture.md", "docs/architecture.zh-TW.md")
FILE = re.compile(r"`(?:finetune/)?((?:\w+/)+\w+(?:\.\w+)?)`")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page):
    named = FILE.findall(text_of(page))
    assert len(set(named)) >= 40
    for name in named:
        assert (ROOT / "finetune" / name).exists() or (ROOT / name).exists(), name
    for link in LINK.findall(text_of(page)):
        assert (ROOT / "docs" / link).is_file(), link
    assert len(text_of(page).splitlines()) <= LONGEST


@pytest.mark.parametrize("page", PAGES)
def test_the_table_names_the_wings_in_their_order(page):
    assert tuple(re.findall(r"^\| `(\w+)` \|", text_of(page), re.M)) == WINGS


def test_every_module_that_a_docstring_comment_or_page_names_is_there():
    named = re.compile(rf"(?<![\w./])(?:finetune/)?((?:{'|'.join(WINGS)})/\w+\.py)")
    files = [*(ROOT / "finetune").rglob("*.py"), *ROOT.glob("*.py"), *ROOT.glob("*.md")]
    files += ROOT.glob("docs/*.md")
    found = {(name, file.name) for file in files for name in named.findall(file.read_text(encoding="utf-8"))}
    assert len(found) > 100
    for name, file in found:
        assert (ROOT / "finetune" / name).is_file(), (file, name)


@pytest.mark.parametrize("page", PAGES)
def test_the_table_names_every_module_of_each_wing(page):
    for wing, cell in re.findall(r"^\| `(\w+)` \| (.*) \|$", text_of(page), re.M):
        modules = {path.stem for path in (ROOT / "finetune" / wing).glob("*.py")} - {"__init__"}
        assert modules <= set(re.findall(r"`(\w+)`", cell)), (wing, modules)


def test_both_languages_name_the_same():
    english, chinese = (re.findall(r"`([^`]+)`", text_of(page)) for page in PAGES)
    assert sorted(set(english)) == sorted(set(chinese))
    assert FILE.findall(text_of(PAGES[0])) == FILE.findall(text_of(PAGES[1]))


def test_the_changelog_leads_to_modules_that_are_there():
    new = re.findall(r"`(finetune(?:\.\w+){2,})`", text_of("CHANGELOG.md"))
    assert len(new) > 60
    for name in new:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.parent.with_suffix(".py").is_file(), name


# Names of 0.1.0 beside those in the changelog's second table; plain English words are left out.
OLD_NAMES = (
    "Lifeline", "Desk", "Contest", "Contests", "ContestBatch", "Catalogue", "Sitting", "Growth",
    "BlankLogits", "RowLogits", "StepReport", "Prober", "Unaskable", "HiddenWordTask", "ReplyTask",
    "LabelTask", "QuestionSheet", "PromptSheet", "ReplySheet", "LabelSheet", "LearningPlan",
    "examined_as", "hide_randomly", "on_shelf", "whole_file", "write_whole", "keeper_of", "carry_out",
    "make_do_with_less", "bf16_gain", "by_main", "all_or_none", "cut_by_tokens", "shared_out",
    "UNTAUGHT", "UNTOLD", "UNTUNED", "AIMS",
)  # fmt: skip


def test_no_symbol_that_the_changelog_calls_old_is_left_in_code_or_pages():
    table = text_of("CHANGELOG.md").partition("Symbols most likely to be imported")[2]
    rows = re.findall(r"^\| ([^|]*) \| [^|]* \|$", table, re.M)
    old = {*re.findall(r"\b[A-Z][a-z]+[A-Za-z]*\b", " ".join(rows)), *OLD_NAMES}
    old -= {"Machine", "Progress"}  # a word, and now the type of a callback
    assert {"Examinee", "Lesson", "Shelf", "Speaker"} <= old
    word = re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(old))})(?![\w-])")
    files = [*(ROOT / "finetune").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *ROOT.glob("*.py")]
    files += [*(ROOT / "docs").glob("*.md"), *ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md"]
    assert not [
        (path.name, found) for path in files for found in word.findall(path.read_text(encoding="utf-8"))
    ]
