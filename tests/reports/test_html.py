"""The report as people read it: the verdict in one sentence, and index.html in a real browser."""

from __future__ import annotations

import functools
import json
import math
import random
import re
from html.parser import HTMLParser

import browser as browsers
import pytest

import inference
from finetune.data.contamination import TrainedQuestions
from finetune.data.question import Question
from finetune.data.subjects import SUBJECTS
from finetune.evaluation import evaluator
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.key_audit import audit_keys, voter_of
from finetune.evaluation.repeats import RepeatedResult, repeated_figures
from finetune.evaluation.scores import Scores
from finetune.reports import report, sections
from finetune.reports.html import embedded, training
from finetune.reports.number_format import percent

pytestmark = pytest.mark.pictures

HOSTILE = (
    """<script>alert(1)</script>"><img src=x onerror=alert(2)>'</style></p><b>{{ 7 * 7 }}&lt;$\\frac{$"""
)
WIDTHS = (400, 1400)


# ---- made-up exams -----------------------------------------------------------------------------------------


def make_result(questions, accuracy: float, method="letter", seed=0, cyclic=False) -> ExamResult:
    """Answers of which about so many are right."""
    rng = random.Random(seed)
    rows, by_order = Scores(), []
    for question in questions:
        row = [rng.gauss(0, 1) for _ in question.options]
        if rng.random() < accuracy:
            row[question.answer] = max(row) + rng.random()
        rows.append(row)
        order = list(range(len(row)))
        turns = [tuple(order[i:] + order[:i]) for i in order]
        by_order.append([(turn, [rng.random() for _ in row]) for turn in turns] if cyclic else [])
    rows.by_order = by_order
    return ExamResult(questions, rows, method, "cyclic" if cyclic else "1")


def make_questions(subjects, each: int, seed=0, text="") -> list[Question]:
    rng = random.Random(seed)
    return [
        Question(
            f"{text}第{rng.random()}題問的是哪一個城市？", tuple(f"{text}選項{rng.random()}" for _ in "ABCD"),
            rng.randrange(4), subject, f"{text}{subject}-{number}",
        )
        for subject in subjects
        for number in range(each)
    ]  # fmt: skip


@functools.cache
def full(text="") -> report.Report:
    """Everything a report can hold: two sets, 66 subjects and one, another model, several runs, doubtful
    keys, questions trained on, notes."""
    many, one = (
        make_questions(SUBJECTS, 4, text=text),
        make_questions([text or "一個名字長得_一行放不下_而且沒有空格的科目"], 40, text=text),
    )
    results, exam_results = {}, {}
    for name, rows in (("held_back", one), ("test", many)):
        mine, other = make_result(rows, 0.6, cyclic=name == "test"), make_result(rows, 0.1, seed=5)
        if name == "held_back":
            runs = [mine, make_result(rows, 0.6, seed=7), make_result(rows, 0.5, seed=8)]
            mine = RepeatedResult(rows, mine.scores, mine.method, mine.orders, runs=runs)
        alone, unseen = (
            make_result(rows, 0.05, seed=6),
            make_result(make_questions(["physics"], 50, seed=9), 0.5),
        )
        results[name] = evaluator.compute_metrics(mine, other, TrainedQuestions.of(rows[:15]), alone, unseen)
        results[name] |= repeated_figures(mine, other, results[name])
        results[name]["doubtful_keys"] = audit_keys(rows, [voter_of(mine, text or "甲")]).summary
        exam_results[name] = (mine, other)
    history = [
        {"step": s, "train_loss": 3 / s, "validation_loss": 4 / s, "validation_accuracy": 1 - 1 / s}
        for s in range(1, 9)
    ]
    title = text or sections.BASE_MODEL_TITLE
    return report.Report(
        {"模型": text or "甲", "題庫": text or "乙"}, results, exam_results, title, "other", history, 5,
        [sections.NOT_COMPARABLE, *filter(None, [text])],
    )  # fmt: skip


@pytest.fixture(scope="module")
def chromium():
    with browsers.started() as browser:
        yield browser


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a full report."""
    folder = tmp_path_factory.mktemp("whole")
    report.write(folder, full())
    return folder


@pytest.fixture(scope="module")
def exam_report(tmp_path_factory, model_dir, exam_dir):
    """The folder of an exam evaluated by inference.py."""
    folder = tmp_path_factory.mktemp("exam_report")
    words = [
        "--model_path",
        model_dir,
        "--cpu",
        "--exam",
        exam_dir,
        "--scoring",
        "letter",
        "--orders",
        "cyclic",
    ]
    assert inference.main([*map(str, words), "--report", str(folder)]) == 0
    return folder


# ---- the verdict -------------------------------------------------------------------------------------------


def figures(right: int, n=200, other: int | None = None, p=1.0, trick=0.26, skipped=0) -> dict:
    """As much of a set's figures as the verdict reads."""
    from finetune.evaluation.metrics import wilson

    whole = {
        "accuracy": right / n, "right": right, "n": n, "interval_95": wilson(right, n), "chance": 0.25,
        "majority_letter": 0.26, "majority_letter_is": "B", "longest_option": trick, "shortest_option": 0.2,
        "overlap": 0.2,
    }  # fmt: skip
    found = {
        "model": whole, "macro_4": None, "contamination": {}, "option_only": None, "other": {}, "paired": {},
        "skipped": skipped,
        "outcomes": {},
        "shortened": 0,
    }  # fmt: skip
    if other is not None:
        found["other"] = {"accuracy": other / n, "n": n, "interval_95": wilson(other, n)}
        found["paired"] = {"p_value": p, "difference": (right - other) / n}
    return found


@pytest.mark.parametrize(
    "made, said",
    [
        (
            {"right": 190, "other": 50, "p": 1e-30},
            "200 題答對 190 題（95 %），遠高於亂猜的 25 %，也高於微調前的 25 %；差異極不可能只是運氣。",
        ),
        ({"right": 80}, "200 題答對 80 題（40 %），高於亂猜的 25 %。"),
        ({"right": 55}, "200 題答對 55 題（27.5 %），看不出比亂猜的 25 % 好。"),
        ({"right": 20}, "200 題答對 20 題（10 %），比亂猜的 25 % 還差。"),
        (
            {"right": 20, "skipped": 120},
            "200 題答對 20 題（10 %；120 題無法作答，算答錯），比亂猜的 25 % 還差。",
        ),
        (
            {"right": 80, "trick": 0.37},
            "200 題答對 80 題（40 %），高於亂猜的 25 %，但看不出勝過不必懂題目的「全選最長的選項」（37 %）。",
        ),
        (
            {"right": 80, "trick": 0.6, "other": 50, "p": 0.003},
            "200 題答對 80 題（40 %），高於亂猜的 25 %，但不如不必懂題目的「全選最長的選項」（60 %），"
            "不過高於微調前的 25 %；差異不像是運氣（p = 0.003）。",
        ),
        (
            {"right": 80, "other": 100, "p": 0.02},
            "200 題答對 80 題（40 %），高於亂猜的 25 %，不過低於微調前的 50 %；差異不像是運氣（p = 0.02）。",
        ),
        (
            {"right": 80, "other": 76, "p": 0.05},
            "200 題答對 80 題（40 %），高於亂猜的 25 %，與微調前的 38 % 分不出高下。",
        ),
        (
            {"right": 55, "other": 20, "p": 1e-3},
            "200 題答對 55 題（27.5 %），看不出比亂猜的 25 % 好，不過高於微調前的 10 %；"
            "差異不像是運氣（p = 0.001）。",
        ),
        (
            {"right": 20, "other": 80, "p": 1e-9},
            "200 題答對 20 題（10 %），比亂猜的 25 % 還差，也低於微調前的 40 %；差異極不可能只是運氣。",
        ),
    ],
)
def test_the_verdict_says_what_the_figures_show(made, said):
    assert sections.verdict_sentence(report.Report({}, {}, {}), figures(**made)) == said


def test_the_other_model_is_named_without_the_folders_above_it():
    held = report.Report({}, {}, {}, other="/home/someone/runs/first/model")
    assert "與 first/model 的 38 % 分不出高下" in sections.verdict_sentence(held, figures(80, other=76))


def test_notes_questions_trained_on_and_skipped_ones_stand_beside_the_verdict():
    found = full().results["held_back"] | {"skipped": 3}
    lines = sections.section_notes(full(), found)
    assert lines[0] == sections.NOT_COMPARABLE
    assert any("15 題是模型訓練過的，去掉後" in line for line in lines) and "3 題" in lines[-1]


@pytest.mark.parametrize(
    "method, orders, said",
    [
        ("joint", "cyclic", "換順序不影響答案"),
        ("letter", "1", "--orders 1"),
        ("letter", "cyclic", "會跟著變"),
    ],
)
def test_order_bias_is_shown_or_why_there_is_none(method, orders, said):
    rows = make_questions(["physics"], 20)
    found = evaluator.compute_metrics(
        make_result(rows, 0.5, method, cyclic=orders == "cyclic" and method == "letter")
    )
    assert said in sections.order_bias(found)


def test_a_temperature_that_could_not_be_fitted_is_said():
    found = evaluator.compute_metrics(make_result(make_questions(["physics"], 20), 0.5))
    assert "沒有題目可用來調整溫度" in sections.calibration(found)


@pytest.mark.parametrize("sure, said", [(8.0, "過度自信"), (0.01, "信心不足"), (1.2, "可能只是抽樣的起伏")])
def test_confidence_is_called_too_high_or_too_low_only_beyond_the_interval(sure, said):
    rows = make_questions(["physics"], 60)
    result = make_result(rows, 0)
    for index, row in enumerate(result.scores):  # every second question right, whatever the confidence
        chosen = rows[index].answer if index % 2 else (rows[index].answer + 1) % 4
        row[:] = [sure * (i == chosen) for i in range(4)]
    assert said in sections.calibration(evaluator.compute_metrics(result))


@pytest.mark.slow
def test_report_md_opens_with_the_verdict_and_shows_the_subjects(whole):
    text = (whole / "report.md").read_text(encoding="utf-8")
    for section in full().sections():
        assert f"**{section.verdict}**" in text
        assert f"(subjects_{section.name}.png)" in text
        assert (whole / f"subjects_{section.name}.png").read_bytes()[:4] == b"\x89PNG"


def test_report_md_shows_every_name_as_text():
    lines = report.markdown(full("<img src=x>|"), {}).splitlines()
    assert not [line for line in lines if "<img" in line]
    assert {line.count("|") for line in lines if line.startswith("|")} == {5, 6, 10}  # scores, runs, keys


# ---- the page ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_opens_without_an_error_or_a_request(chromium, whole, exam_report, width, scheme):
    for folder in (whole, exam_report):
        with browsers.opened(chromium, folder / "index.html", width, scheme) as tab:
            assert tab.locator("article").count() == len(tab.locator(".sentence").all()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("width", (360, *WIDTHS))
def test_the_page_is_never_wider_than_the_window(chromium, whole, exam_report, width):
    for folder in (whole, exam_report):
        with browsers.opened(chromium, folder / "index.html", width) as tab:
            assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_no_text_is_smaller_than_11_pixels_on_a_telephone(chromium, whole):
    with browsers.opened(chromium, whole / "index.html", 400) as tab:
        assert browsers.smallest_text(tab) >= 11


@pytest.mark.slow
def test_every_character_has_a_glyph(chromium, whole, exam_report):
    for folder in (whole, exam_report):
        with browsers.opened(chromium, folder / "index.html") as tab:
            boxes = tab.evaluate(
                """() => {
                    const canvas = document.createElement("canvas");
                    canvas.width = canvas.height = 48;
                    const pen = canvas.getContext("2d", {willReadFrequently: true});
                    pen.font = "32px " + getComputedStyle(document.body).fontFamily;
                    const drawn = character => {
                        pen.clearRect(0, 0, 48, 48);
                        pen.fillText(character, 4, 36);
                        return pen.getImageData(0, 0, 48, 48).data.join();
                    };
                    const box = drawn("\\u{10FFFD}");
                    const all = new Set(document.body.textContent);
                    return [all.size, [...all].filter(c => c.trim() && drawn(c) == box).join("")];
                }"""
            )
            assert boxes[0] > 100 and boxes[1] == ""


@pytest.mark.slow
def test_what_a_question_holds_is_shown_and_never_run(chromium, tmp_path):
    report.write(tmp_path, full(HOSTILE))
    with browsers.opened(chromium, tmp_path / "index.html") as tab:
        assert tab.locator("script, img, iframe, object, link, base").count() == 0
        shown = tab.locator("body").inner_text()
        for place in (".mistakes p", ".mistakes span", ".mistakes small", ".contamination td.text"):
            held = tab.locator(place).all_text_contents()
            assert any("<script>alert(1)</script>" in text for text in held), place
        assert HOSTILE in shown and "49" not in tab.locator(".facts").inner_text()


class Attributes(HTMLParser):
    """Collects the addresses a page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_refers_to_nothing_outside_itself(whole, exam_report):
    for folder in (whole, exam_report):
        text = (folder / "index.html").read_text(encoding="utf-8")
        assert all(place.startswith("#set-") for place in Attributes(text).found)
        assert not re.search(r"https?://|@import", text)
        assert all(place.startswith("data:") for place in re.findall(r"url\(\s*[\"']?([^)]*)", text))
        assert "default-src 'none'" in text


def chart(tab, where: str) -> list[tuple[str, str, str]]:
    """(label, accuracy, interval) of every row of a chart, as shown."""
    rows = tab.locator(f"{where} .chart li:not(.axis)").evaluate_all(
        """rows => rows.map(row => [row.querySelector(".label").firstChild.data ? row.querySelector(".label")
            .textContent : "", ...row.querySelector(".value").innerText.split(/\\s*\\n\\s*/)])"""
    )
    return [(label.strip(), value.strip(), *ends) for label, value, *ends in rows]


def test_subjects_come_the_best_first_each_with_its_interval(chromium, whole):
    results = json.loads((whole / "results.json").read_text(encoding="utf-8"))["test"]["subjects"]
    with browsers.opened(chromium, whole / "index.html", 400) as tab:
        shown = chart(tab, "[data-set=test] .subjects")
    assert len(shown) == 66
    for (label, value, ends), row in zip(
        shown, sorted(results.values(), key=lambda row: -row["accuracy"]), strict=True
    ):
        low, high = (f"{100 * end:.1f}" for end in row["interval_95"])
        assert (value.replace("\u00a0", " "), ends) == (percent(row["accuracy"]), f"{low}–{high}"), label
        assert label.endswith(f"{row['n']}\u00a0題")


@pytest.mark.slow
def test_figures_on_the_page_are_those_of_results_json(chromium, whole, exam_report):
    for folder, name in ((whole, "held_back"), (whole, "test"), (exam_report, "test")):
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))[name]
        with browsers.opened(chromium, folder / "index.html", 400) as tab:
            here = tab.locator(f"[data-set={name}]")
            shown = {
                value.replace("\u00a0", " ") for _, value, *_ in chart(tab, f"[data-set={name}] .standings")
            }
            whole_text = here.inner_text().replace("\u00a0", " ")
            counts = here.locator(".letters table").last.locator("td").all_inner_texts()
        mine = found["model"]
        expected = [
            mine[key] for key in ("accuracy", "chance", "majority_letter", "longest_option", "overlap")
        ]
        expected += [found["option_only"]["accuracy"]]
        expected += [found["other"]["accuracy"]] if found["other"] else []
        expected += [found["macro_4"]["macro_4"]] if found["macro_4"] else []
        assert {percent(value) for value in expected} <= shown
        confusion = [count for row in found["letters"]["confusion"] for count in row]
        assert list(map(float, counts)) == pytest.approx(confusion, abs=0.05)  # a tie counts 1/k, a run 1/3
        for at in ("as_scored", "fitted"):
            if figures := found["calibration"][at]:
                told = f"{percent(figures['ece'])}\t{figures['nll']:.3f}\t{figures['brier']:.3f}"
                assert told in whole_text
        assert f"（RStd）{percent(found['letters']['recall_std'])}" in whole_text


def test_a_long_list_of_questions_trained_on_is_folded(chromium, whole):
    with browsers.opened(chromium, whole / "index.html") as tab:
        lists = tab.locator("details")
        assert [one.get_attribute("open") for one in lists.all()] == [None, None]
        assert lists.first.locator("tr").count() == 16


@pytest.mark.slow
def test_the_surest_mistakes_show_the_right_option_and_the_chosen_one(chromium, whole):
    expected = evaluator.mistakes(full().exam_results["test"][0])
    with browsers.opened(chromium, whole / "index.html") as tab:
        shown = tab.locator("[data-set=test] .mistakes > li").all()
        assert len(shown) == len(expected) == 20
        for item, one in zip(shown, expected, strict=True):
            assert item.locator("p").inner_text() == one["question"]
            assert item.locator(".gold b").first.inner_text() == one["gold"]
            assert item.locator(".chosen b").first.inner_text() == one["prediction"]
            assert percent(one["confidence"]) in item.inner_text().replace("\u00a0", " ")


@pytest.mark.slow
def test_training_is_drawn_when_its_history_is_known(chromium, whole, exam_report):
    with browsers.opened(chromium, whole / "index.html") as tab:
        assert tab.locator("svg[aria-label=損失] path.other").bounding_box()["width"] > 100
        assert tab.locator("svg[aria-label^=驗證正確率] path.best").count() == 1
    with browsers.opened(chromium, exam_report / "index.html") as tab:
        assert tab.locator("svg[aria-label=損失]").count() == 0
    assert training([{"step": 4, "train_loss": math.nan}])  # a run that went wrong has a page too


@pytest.mark.slow
def test_the_font_in_the_page_is_cut_to_its_characters():
    assert len(embedded("甲乙丙")) < 20_000 < len(embedded(map(chr, range(0x4E00, 0x5000))))
