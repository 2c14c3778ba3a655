"""The figures of --draw as files: whole XML, small, the same every time, every text in its place."""

from __future__ import annotations

import functools
import re
from xml.etree import ElementTree

import browser as browsers
import pytest
from transformers import AutoConfig

from finetune.models.run_card import RunCard
from finetune.reports import figures
from finetune.reports.figure_files import NAMES
from finetune.reports.svg import SIZES, WIDTH, Box, Drawing, fitted, lines_of, text_length

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    """<script>alert(1)</script>"><img src=x onerror=alert(2)>'</style>]]>&amp; {{ 7 }} """
    "\x1b[31m\u202e\ufffe"
)
LARGEST = 60_000  # bytes
DRAWN = {"svg", "title", "desc", "style", "defs", "marker", "g", "rect", "circle", "path", "text"}
GRADUAL = RunCard(
    task="classify", scoring="", step=4000, flags={"unfreeze_every": 100},
    parameters={"all": 5, "trained": 4},
    lineage=[
        {"stage": "base", "model": HOSTILE, "sha256": ""},
        {"stage": "mlm", "dataset": HOSTILE * 9, "steps": 3},
    ],
)  # fmt: skip
GIANT = {
    "hidden_size": 16384, "num_hidden_layers": 126, "intermediate_size": 53248, "num_attention_heads": 128,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
SUBJECTS = {  # title -> (family, settings, run card)
    "default": None,
    "48 layers": ("gpt2", {"n_layer": 48, "n_embd": 1600, "n_head": 25}, None),
    "one layer": ("bert", {"num_hidden_layers": 1}, RunCard(flags={"lora_rank": 8}, parameters={"all": 1})),
    "unfrozen layer by layer": ("bert", {"num_hidden_layers": 40}, GRADUAL),
    "shared": ("albert", {}, None),
    "t5": ("mt5", {"tie_word_embeddings": False}, RunCard(task="seq2seq", flags={"lora_rank": 4})),
    "mbart": ("mbart", {}, None),
    "mamba": ("mamba", {"num_hidden_layers": 2}, None),
}  # fmt: skip
MORE = {
    "hundreds of billions": ("llama", GIANT, None), "bloom": ("bloom", {}, None), "opt": ("opt", {}, None),
    "deberta": ("deberta-v2", {}, None), "modernbert": ("modernbert", {}, None),
    "mixtral": ("mixtral", {}, None), "electra": ("electra", {}, None), "falcon": ("falcon", {}, None),
    "gpt_neox": ("gpt_neox", {}, None), "openai-gpt": ("openai-gpt", {}, None), "xlnet": ("xlnet", {}, None),
    "distilbert": ("distilbert", {}, None), "gemma2": ("gemma2", {}, None), "pegasus": ("pegasus", {}, None),
    "funnel": ("funnel", {}, None), "rwkv": ("rwkv", {}, None), "marian": ("marian", {}, None),
    "prophetnet": ("prophetnet", {}, None), "longformer": ("longformer", {}, None), "xlm": ("xlm", {}, None),
    "switch": ("switch_transformers", {}, None), "gpt_oss": ("gpt_oss", {}, None),
    "deepseek": ("deepseek_v3", {}, None), "esm": ("esm", {"vocab_size": 33}, None),
    "big_bird": ("big_bird", {}, None), "clip": ("clip", {}, None), "led": ("led", {}, None),
}  # fmt: skip
TITLES = (*SUBJECTS, *(pytest.param(title, marks=pytest.mark.nightly) for title in MORE))


def subject(title: str, name: str = "") -> figures.Subject | None:
    found = (SUBJECTS | MORE)[title]
    if found is None:
        return None
    family, settings, card = found
    return figures.Subject(
        AutoConfig.for_model(family, **settings), name or title, f"{name or title} 的設定", card
    )


@pytest.fixture(scope="module")
def drawn():
    """Draws the figures of a subject, once."""
    return functools.cache(lambda title: figures.draw(subject(title)))


def texts_of(svg: str) -> list[tuple[str, str, float, float]]:
    """(text, look, left, right) of every text; raises where one is below or above the figure."""
    root = ElementTree.fromstring(svg)
    height, found = float(root.get("height")), []
    for one in root.iter(f"{SVG}text"):
        look = one.get("class").split()[0]
        length, x, y = text_length(one.text, look), float(one.get("x")), float(one.get("y"))
        left = x - {"middle": length / 2, "end": length}.get(one.get("text-anchor"), 0)
        assert SIZES[look] * 0.7 < y < height - 2, one.text
        found.append((one.text, look, left, left + length))
    return found


@pytest.mark.parametrize("title", TITLES)
def test_every_text_has_room(drawn, title):
    for name, svg in drawn(title).files.items():
        for text, _, left, right in texts_of(svg):
            assert left >= 0 and right <= WIDTH, (name, text)
        for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
            box = group.find(f"{SVG}rect")
            top, low = float(box.get("y")), float(box.get("y")) + float(box.get("height"))
            for one in group.iter(f"{SVG}text"):
                length = text_length(one.text, one.get("class").split()[0])
                assert length <= float(box.get("width")), (name, one.text)
                assert top < float(one.get("y")) < low, (name, one.text)


@pytest.mark.parametrize("title", TITLES)
def test_a_figure_is_small_sound_and_says_what_it_shows(drawn, title):
    assert tuple(drawn(title).files) and set(drawn(title).files) == set(NAMES)
    for svg in drawn(title).files.values():
        root = ElementTree.fromstring(svg)
        assert len(svg.encode()) < LARGEST and root.get("viewBox") == f"0 0 {WIDTH} {root.get('height')}"
        assert root.get("role") == "img" and root.find(f"{SVG}title").text and root.find(f"{SVG}desc").text
        for one in root.iter(f"{SVG}rect"):
            assert float(one.get("width")) >= 0 and float(one.get("height")) >= 0
            assert float(one.get("y") or 0) + float(one.get("height")) <= float(root.get("height"))
        tags = {one.tag.removeprefix(SVG) for one in root.iter()}
        assert tags <= DRAWN
        assert "url(" not in re.sub(r"url\(#tip\)", "", svg) and "http" not in svg.split("xmlns=", 1)[1][30:]


@pytest.mark.parametrize("title", ["default", "48 layers", "t5", "shared", "unfrozen layer by layer"])
def test_only_names_are_shortened(drawn, title):
    for name, svg in drawn(title).files.items():
        assert not [text for text, *_ in texts_of(svg) if "…" in text and "script" not in text], name


@pytest.mark.parametrize("title", ["default", "one layer"])
def test_the_same_configuration_gives_the_same_bytes(drawn, title):
    assert figures.draw(subject(title)).files == drawn(title).files


@pytest.mark.parametrize("title", ["48 layers", "unfrozen layer by layer", "t5", "mamba"])
def test_the_numbers_of_json_stand_in_the_figures(drawn, title):
    for name, facts in drawn(title).facts.items():
        words = " ".join(text for text, *_ in texts_of(drawn(title).files[name]))
        counts = facts["parameters"].values() if name == "families" else [facts["parameters"]]
        for choice in facts.get("choices", {}).values():
            counts = [*counts, choice["trained"], choice["frozen"]]
        for head in facts.get("heads", {}).values():
            counts = [*counts, head["parameters"], facts["body"]]
        assert all(f"{count:,}" in words for count in counts), name


def test_a_model_stands_in_the_figures_of_its_own_family_and_the_others_say_what_they_are(drawn):
    for title, own in (("48 layers", "gpt"), ("one layer", "bert"), ("t5", "t5"), ("mbart", "bart")):
        configurations = drawn(title).facts["families"]["configurations"]
        assert configurations[own] == f"{title} 的設定"
        assert all("的預設值" in words for column, words in configurations.items() if column != own)
        for name in ("layers", "transfer"):
            assert f"{title} 的設定" in drawn(title).files[name]
        for name in ("bert", "gpt"):
            assert (f"{title} 的設定" in drawn(title).files[name]) == (name == own)


def test_a_family_without_attention_is_drawn_where_it_can_be(drawn):
    made = drawn("mamba")
    assert any("mamba 沒有自注意力" in note for note in made.notes)
    assert made.facts["gpt"]["model"] == "GPT2Config()" and made.facts["layers"]["model"] == "mamba"


def test_of_many_layers_that_are_unfrozen_one_by_one_the_steps_are_written(drawn):
    words = [text for text, *_ in texts_of(drawn("unfrozen layer by layer").files["layers"])]
    assert {"39：100 步起", "38：200 步起", "1–37：300–3900 步起", "0：4000 步起"} <= set(words)


def test_names_from_outside_stay_text():
    made = figures.draw(subject("one layer", HOSTILE * 20))
    for svg in made.files.values():
        assert "<script" not in svg and "\x1b" not in svg and "\ufffe" not in svg
        assert max(right for *_, right in texts_of(svg)) <= WIDTH


def test_lines_are_broken_where_they_may_be():
    text = "遮住 15 % 的字，猜回來（MLM），並判斷兩句是否相連（Next sentence prediction）。"
    for room in range(80, 600, 20):
        lines = lines_of(text, room)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert not any(line[0] in "，。）" for line in lines)
        assert all(text_length(line) <= room + 19 for line in lines if " " in line.strip() or len(line) < 9)
    assert fitted("天" * 90, 100).endswith("…") and text_length(fitted("天" * 90, 100)) <= 100


def test_a_box_shortens_what_it_holds():
    drawing = Drawing("圖", "一張圖")
    drawing.box(Box(0, 0, 60, 30), "blue", [("很長的一段文字放不下", "text")])
    assert "…" in drawing.render(40)


@pytest.mark.pictures
@pytest.mark.nightly
def test_in_a_browser_every_text_is_inside_its_box_and_legible_on_a_telephone(drawn, tmp_path):
    outside = """() => [...document.querySelectorAll("g")].flatMap(g => {
        const box = g.querySelector("rect").getBBox();
        return [...g.querySelectorAll("text")].filter(t => { const b = t.getBBox();
            return b.x < box.x || b.x + b.width > box.x + box.width; }).map(t => t.textContent); })"""
    beyond = """() => [...document.querySelectorAll("text")].filter(t => { const b = t.getBBox();
        return b.x < 0 || b.x + b.width > 680; }).map(t => t.textContent)"""
    smallest = """() => Math.min(...[...document.querySelectorAll("text")].map(
        t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"""
    with browsers.started() as browser:
        for title in SUBJECTS:
            for name, svg in drawn(title).files.items():
                page_file = tmp_path / "page.html"
                flexible = svg.replace(
                    ' width="680" height=', ' style="width:100%;height:auto" data-height=', 1
                )
                page_file.write_text(f"<!doctype html><meta charset=utf-8>{flexible}", encoding="utf-8")
                with browsers.opened(browser, page_file, 390, "dark") as page:
                    assert page.evaluate(outside) == [] == page.evaluate(beyond), (title, name)
                    assert page.evaluate(smallest) > 7
