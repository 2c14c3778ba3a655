"""Output of a classifier's training for people: the page in a real browser, report.md, the picture, the
model card."""

from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace

import browser as browsers
import pytest
from matplotlib import image

from finetune.evaluation.classification import compute_metrics
from finetune.models.run_card import RunCard
from finetune.reports import classification as classification_report
from finetune.reports import model_card, plots, report, templates
from finetune.reports.classification import LISTED, NONE, label_verdict
from finetune.reports.html import training
from finetune.reports.number_format import percent, small
from finetune.reports.plots import plot_confusion
from finetune.training.state import TrainingState

pytestmark = pytest.mark.pictures

HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(2)>|{{ 7 * 7 }}\n# [x](http://x) **$y$**"""
SETS = {"validation": 60, "held_back": 90, "test": 120}


def made(count: int, names, seed: int = 0, skill: float = 3.0, multi: bool = False) -> dict:
    """Figures of a classifier that is right now and then."""
    rng, k = random.Random(seed), len(names)
    truth, rows = [], []
    for _ in range(count):
        there = [i for i in range(k) if rng.random() < 0.4] if multi else [rng.randrange(k)]
        row = [rng.random() + (skill * rng.random() if i in there else 0) for i in range(k)]
        truth.append(tuple(there))
        rows.append([min(1.0, value) for value in row] if multi else [value / sum(row) for value in row])
    return compute_metrics(truth, rows, names, multi)


def card(names=("正面", "中立", "負面"), multi=False, sets=SETS, **changes) -> RunCard:
    """Of a finished run."""
    labels = {
        name: made(count, names, number, multi=multi) for number, (name, count) in enumerate(sets.items())
    }
    known = {"learning_rate": 3e-05, "train_batch_size": 16, "num_epochs": 2, "max_length": 128, "seed": 7}
    return RunCard(
        task="classify", scoring="", base_model="某處/bert-base", dataset="評論", labels=labels, step=8,
        flags=known, **changes,
    )  # fmt: skip


PROGRESS = TrainingState(
    step=8, epoch=2, best_step=8, seconds=12.0,
    history=[
        {"step": s, "train_loss": 3 / s, "validation_loss": 4 / s, "validation_macro_f1": 1 - 1 / s,
         "validation_accuracy": 0.5}
        for s in range(1, 9)
    ],
)  # fmt: skip


def written(folder, found: RunCard):
    report.write(folder, report.of_training(found, {}, PROGRESS))
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browsers.started() as browser:
        yield browser


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return written(tmp_path_factory.mktemp("single"), card())


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return written(tmp_path_factory.mktemp("several"), card(multi=True))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    names = [f"第{i}種很長很長很長很長很長很長很長的名稱" for i in range(40)]
    return written(tmp_path_factory.mktemp("many"), card(names, sets={"test": 800}))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    names = [HOSTILE, "||||", "x" * 300]
    return written(tmp_path_factory.mktemp("hostile"), card(names))


def labels_in(folder) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["labels"]


# ---- the page ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", (360, pytest.param(400, marks=pytest.mark.nightly), 1400))
def test_the_page_opens_without_an_error_and_is_never_wider_than_the_window(
    chromium, single, several, many, hostile, width, scheme
):
    for folder in (single, several, many, hostile):
        with browsers.opened(chromium, folder / "index.html", width, scheme) as tab:
            assert tab.locator("article").count() == len(labels_in(folder))
            assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_the_page_shows_the_figures_of_results_json(chromium, single, several):
    for folder in (single, several):
        with browsers.opened(chromium, folder / "index.html", 400) as tab:
            for name, found in labels_in(folder).items():
                here = tab.locator(f"[data-set={name}]")
                text = here.inner_text().replace("\u00a0", " ")
                shown = [found[f"{a}_{b}"] for a in ("macro", "micro") for b in ("f1", "precision", "recall")]
                shown += [found["accuracy"], found["majority"], found["macro_f1_majority"]]
                shown += [found["hamming_loss"]] if found["multi"] else [found["ece"]]
                assert all(percent(value) in text for value in [*shown, *found["interval_95"]])
                assert f"{found['log_loss']:.3f}" in text
                assert found["multi"] or f"{found['mcc']:.3f}" in text
                assert f"{found['right']} 列" in text
                for row, (label, one) in zip(
                    here.locator(".classes tr").all()[1:], found["per_class"].items(), strict=True
                ):
                    cells = row.locator("th, td").all_inner_texts()
                    figures = [percent(one[what]) for what in ("precision", "recall", "f1")]
                    said = [cell.replace("\u00a0", " ") for cell in cells]
                    assert said[:5] == [label, str(one["support"]), *figures]


@pytest.mark.slow
def test_the_page_shows_who_was_taken_for_whom(chromium, single, several):
    with browsers.opened(chromium, single / "index.html", 400) as tab:
        for name, found in labels_in(single).items():
            counts = tab.locator(f"[data-set={name}] .confusion td").all_inner_texts()
            assert list(map(int, counts)) == [count for row in found["confusion"] for count in row]
    with browsers.opened(chromium, several / "index.html", 400) as tab:
        found = labels_in(several)["test"]
        last = [row.split("\t")[-2:] for row in tab.locator("[data-set=test] .classes tr").all_inner_texts()]
        assert last[1:] == [[str(fn), str(fp)] for (_, fp), (fn, _) in found["confusion"]]
        assert tab.locator(".confusion").count() == 0


def test_of_many_classes_the_page_shows_the_picture_and_the_commonest_confusions(chromium, many):
    found = labels_in(many)["test"]
    with browsers.opened(chromium, many / "index.html") as tab:
        picture = tab.locator(".confusion img")
        assert picture.evaluate("one => one.complete && one.naturalWidth") > 300
        assert "40 類" in picture.get_attribute("alt")
        shown = [row.split("\t") for row in tab.locator(".confusion tr").all_inner_texts()[1:]]
    names, counts = list(found["per_class"]), found["confusion"]
    assert len(shown) == LISTED
    assert all(counts[names.index(one)][names.index(two)] == int(n) for one, two, n in shown)
    off = sorted((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), reverse=True)
    assert [int(n) for *_, n in shown] == off[:LISTED]


def test_no_text_is_smaller_than_11_pixels_on_a_telephone(chromium, single):
    with browsers.opened(chromium, single / "index.html", 400) as tab:
        assert browsers.smallest_text(tab) >= 11


@pytest.mark.slow
def test_figures_are_not_squeezed_by_a_long_name_on_a_telephone(chromium, single, many, hostile):
    for folder in (single, many, hostile):
        with browsers.opened(chromium, folder / "index.html", 360) as tab:
            for figure in tab.locator(".overview dd").all():
                assert figure.bounding_box()["width"] > 100


@pytest.mark.slow
def test_a_table_that_scrolls_can_be_reached_by_keyboard_and_has_a_name(chromium, single, many):
    for folder in (single, many):
        with browsers.opened(chromium, folder / "index.html", 400) as tab:
            for box in tab.locator("article .scroll").all():
                assert box.get_attribute("tabindex") == "0" and box.get_attribute("aria-label")
            assert tab.locator("article th:not([scope])").count() == 0


def test_what_a_class_is_called_is_shown_and_never_run(chromium, hostile):
    with browsers.opened(chromium, hostile / "index.html") as tab:
        assert tab.locator("script, img, iframe, object, link, base").count() == 0
        for place in (".classes th.name", ".confusion th[scope=row]"):
            there = tab.locator(place).all_text_contents()
            assert any("<script>alert(1)</script>" in text and "{{ 7 * 7 }}" in text for text in there), place


def test_the_page_refers_to_nothing_outside_itself(single, several, many):
    for folder in (single, several, many):
        text = (folder / "index.html").read_text(encoding="utf-8")
        places = re.findall(r"""(?:src|href|srcset|data|action)=["']([^"']*)""", text)
        assert all(place.startswith(("#labels-", "data:")) for place in places)
        assert all(f'id="{place[1:]}"' in text for place in places if place.startswith("#"))
        assert not re.search(r"https?://|@import", text)


@pytest.mark.slow
def test_the_page_says_nothing_of_letters_options_or_chance(chromium, single, several):
    for folder in (single, several):
        with browsers.opened(chromium, folder / "index.html") as tab:
            text = tab.locator("body").inner_text()
        text += (folder / "report.md").read_text(encoding="utf-8")
        for word in ("選項", "亂猜", "字母", "題", "困惑度", "作答方式", "McNemar"):
            assert word not in text, word


def test_the_training_curve_is_of_macro_f1_or_else_of_accuracy(chromium, single):
    with browsers.opened(chromium, single / "index.html") as tab:
        assert tab.locator("svg[aria-label=損失] path.other").count() == 1
        assert tab.locator("svg[aria-label^='驗證巨觀 F1'] path.best").count() == 1
        assert tab.locator("svg[aria-label^=驗證正確率]").count() == 0
    without = [{k: v for k, v in entry.items() if k != "validation_macro_f1"} for entry in PROGRESS.history]
    assert [title for title, *_ in training(without)] == ["損失", "驗證正確率（%）"]


def test_a_run_without_rows_to_judge_by_has_a_report_and_a_card_too(chromium, tmp_path):
    found = card(sets={})
    written(tmp_path, found)
    with browsers.opened(chromium, tmp_path / "index.html") as tab:
        assert tab.locator("svg[aria-label=損失]").count() == 1
    assert "labels" not in json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert NONE in model_card.model_card(found).replace("&#95;", "_")


# ---- report.md and the picture -----------------------------------------------------------------------------


def test_report_md_holds_verdict_tables_and_pictures(single, many):
    for folder in (single, many):
        text, labels = (folder / "report.md").read_text(encoding="utf-8"), labels_in(folder)
        for name, found in labels.items():
            assert f"**{label_verdict(found, small)}**" in text
            for label, one in found["per_class"].items():
                assert f"| {label} | {one['support']} | {percent(one['precision'])} |" in text
            for label, row in zip(found["per_class"], found["confusion"], strict=True):
                assert f"| {label} | {' | '.join(map(str, row))} |" in text or folder is many
            file = f"confusion_{name}.png" if len(labels) > 1 else "confusion.png"
            assert f"]({file})" in text and (folder / file).read_bytes()[:4] == b"\x89PNG"


def test_no_class_name_breaks_a_table_of_report_md(hostile):
    text = (hostile / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text and "](http" not in text and "**$y$" not in text
    tables = [[]]
    for line in text.splitlines():
        tables[-1].append(line) if line.startswith("|") else tables.append([])
    tables = [table for table in tables if table]
    assert len(tables) == 3 * len(SETS)
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert not any(line.startswith("# [x]") for line in text.splitlines())


def test_a_former_run_s_picture_does_not_stay(tmp_path, monkeypatch):
    for name in ("confusion.png", "confusion_validation.png"):
        (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(plots, "chinese_font", lambda text: None)
    written(tmp_path, card(sets={"test": 40}))
    assert not list(tmp_path.glob("confusion*"))
    assert "confusion.png" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 7, 30, 31, 45])
def test_the_heat_map_is_drawn_and_darkest_where_most_of_a_class_went(tmp_path, count, recwarn):
    counts = [[90 if j == 0 else 1 for j in range(count)] for _ in range(count)]
    names = [f"很長很長很長很長的類別$x${i}" for i in range(count)]
    assert plot_confusion(tmp_path / "map.png", counts, names)
    pixels = image.imread(tmp_path / "map.png")[..., :3]
    deep_blue = (pixels[..., 2] - pixels[..., 0] > 0.3) & (pixels.sum(axis=2) < 1.5)
    rows, columns = deep_blue[:, : int(pixels.shape[1] * 0.8)].nonzero()  # without the bar of colours
    assert len(rows) > 1000 and rows.std() > 1.5 * columns.std()  # one column of the map, from top to bottom
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_the_heat_map_is_not_drawn_where_a_name_would_be_boxes(tmp_path):
    assert not plot_confusion(tmp_path / "map.png", [[1, 0], [0, 1]], ["甲", "\U0001f9ff"])
    assert not (tmp_path / "map.png").exists()


@pytest.mark.slow
def test_cells_say_counts_and_shares_up_to_30_classes(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    def cell_texts(count):
        texts = []
        monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **more: texts.append((y, x, text)))
        counts = [[3 if i == j else int(j == 0) for j in range(count)] for i in range(count)]
        assert plot_confusion(tmp_path / "map.png", counts, list(map(str, range(count))))
        monkeypatch.undo()
        return texts

    assert sorted(cell_texts(2)) == [(0, 0, "3\n100%"), (1, 0, "1\n25%"), (1, 1, "3\n75%")]
    assert len(cell_texts(30)) == 59 and cell_texts(31) == []


# ---- the model card ----------------------------------------------------------------------------------------


def test_the_model_folder_says_how_good_it_is_and_how_to_use_it(tmp_path):
    found = card()
    model_card.write(tmp_path, found, PROGRESS)
    assert RunCard.read(tmp_path).labels == found.labels
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in text and "3 類：正面、中立、負面" in text
    for line in classification_report.verdict(found.labels):
        assert line.strip() in text
    for labels in found.labels.values():
        head, rows = classification_report.columns(labels), classification_report.rows(labels)
        assert templates.table(head, rows) in text
    assert "from inference import classify, load_model" in text and "--model_path" in text
    for flag in ("--task classify", "--learning_rate 3e-05", "--seed 7", "--num_epochs 2"):
        assert flag in text
    flat = json.loads((tmp_path / "all_results.json").read_text(encoding="utf-8"))
    for name, labels in found.labels.items():
        for key in ("accuracy", "interval_95", "macro_f1", "mcc", "majority"):
            assert flat[f"{name}_{key}"] == labels[key]


def test_hostile_names_stay_text_in_the_model_card():
    text = model_card.model_card(card([HOSTILE, "||||", "y"]))
    assert "<script" not in text and "](http" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


@pytest.mark.parametrize("scoring", ["", "choice"])
def test_a_card_of_a_model_that_scores_no_option_is_read(tmp_path, scoring):
    RunCard(task="classify", scoring=scoring).write(tmp_path)
    assert RunCard.read(tmp_path).scoring == scoring


@pytest.mark.slow
def test_results_are_kept_in_the_card_and_their_verdict_comes_first(tmp_path):
    from finetune.training import publish as publishing

    out = tmp_path / "model"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"weights")
    found = card()
    given = {**found.labels, "test": {}}
    run = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(out), from_scratch=False, task="classify"),
        learning_rate=3e-5,
        output_path=lambda: tmp_path,
        run_card=lambda step, weights: card(sets={}),
        loaded=SimpleNamespace(new_head=False),
        data=SimpleNamespace(train=SimpleNamespace(baseline_loss=None), validation=None, tokenizer=None),
    )
    evaluation = SimpleNamespace(
        results={}, before_after=None, row_metrics=given, predictions=[], run=run, outputs={"tuned": {}}
    )
    kept, verdict = publishing.write_results(run, evaluation, PROGRESS, "以 4 位元載入")
    assert list(kept.labels) == ["validation", "held_back"]
    assert verdict == [*classification_report.verdict(kept.labels), "以 4 位元載入"]
    assert labels_in(tmp_path / "report") == kept.labels
    assert "以 4 位元載入" in (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert (tmp_path / "validation_loss_curve.png").stat().st_size > 0
    evaluation.row_metrics = {"test": {}}
    _, verdict = publishing.write_results(run, evaluation, PROGRESS)
    assert verdict == [NONE]
