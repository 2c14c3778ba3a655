"""The report of rows: a legend of marks stands where something is marked, and nowhere else."""

from __future__ import annotations

import pytest

from finetune.reports.row_report import RowSection


@pytest.mark.parametrize(("look", "marked"), [("right", True), ("", False)])
def test_a_section_says_whether_a_part_of_its_samples_is_marked(look, marked):
    sample = {"title": "一", "lines": [{"label": "文章", "pieces": [["李白", "", ""], ["唐朝", "", look]]}]}
    assert RowSection("span", "held_back", {"samples": [sample]}).marked is marked
    assert not RowSection("span", "held_back", {}).marked
