"""SECURITY.md: every promise names the tests that prove it, and they are there."""

from __future__ import annotations

import ast
import re

import pytest
from conftest import ROOT

PAGES = ("SECURITY.md", "SECURITY.zh-TW.md")
NAMED = re.compile(r"`(test_\w+)`")
LONGEST = 80  # lines of a page


def promises(page: str) -> list[tuple[str, list[str]]]:
    """(promise, tests) of each row of the tables."""
    rows = re.findall(r"^\| (?!---)(.+?) \| (.+?) \|$", (ROOT / page).read_text("utf-8"), re.M)
    return [(promise, NAMED.findall(proof)) for promise, proof in rows if "`test_" in proof]


def names_of_tests() -> set[str]:
    """`test_x` of every file test_x.py below tests/, and the names of all tests."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    trees = [ast.parse(path.read_text("utf-8")) for path in files]
    functions = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {name for name in functions if name.startswith("test_")}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_promise_names_tests_that_are_there(page):
    made, there = promises(page), names_of_tests()
    rows = [line for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("| ")]
    heads = len(re.findall(r"^\|---", (ROOT / page).read_text("utf-8"), re.M))
    assert len(made) == len(rows) - heads - sum("|---" in row for row in rows) >= 20
    for promise, tests in made:
        assert tests and set(tests) <= there, (promise, set(tests) - there)


def test_both_languages_promise_the_same():
    english, chinese = (promises(page) for page in PAGES)
    assert [tests for _, tests in english] == [tests for _, tests in chinese]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_short(page):
    assert len((ROOT / page).read_text("utf-8").splitlines()) <= LONGEST
