"""Texts for continued pre-training: what is read, what each step of the cleaning does and leaves alone."""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter

import pytest
from conftest import random_text

from finetune.data import contamination, corpus_report, hub_dataset
from finetune.data.cleaning import CLEANING, EXCERPT, Cleaning, Text, numbered, parts_of, without_urls
from finetune.data.corpus import Corpus, read_corpus
from finetune.data.corpus_report import as_dict, describe, format_report
from finetune.data.punctuation import tidy
from finetune.data.question import normalised
from finetune.data.splits import split_texts
from finetune.runtime.errors import UserError

NOTHING = Cleaning(())
SHORT = Cleaning(min_chars=1)


def document(seed: int, length: int = 200) -> str:
    return random_text(random.Random(seed), length, length)


def only(*steps: str, **lengths) -> Cleaning:
    return Cleaning(steps, **{"min_chars": 1, **lengths})


def write(file, rows) -> str:
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(file)


def cleaned(tmp_path, rows, cleaning: Cleaning) -> Corpus:
    return read_corpus(write(tmp_path / "rows.jsonl", rows), cleaning)


# ---- reading -----------------------------------------------------------------------------------------------


def test_every_format_holds_the_same_texts(tmp_path):
    import pyarrow
    import pyarrow.parquet

    bodies = [document(seed, 30) for seed in range(3)]
    rows = [{"title": f"題{n}", "text": body} for n, body in enumerate(bodies)]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    write(tmp_path / "a.jsonl", rows)
    lines = ["title,content", *(f'題{n},"{body}"' for n, body in enumerate(bodies))]
    (tmp_path / "a.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in ("json", "jsonl", "csv", "parquet"):
        corpus = read_corpus(str(tmp_path / f"a.{suffix}"), NOTHING)
        assert [text.text for text in corpus.texts] == bodies, suffix
        assert [text.title for text in corpus.texts] == ["題0", "題1", "題2"]
        assert corpus.texts[0].id == f"a.{suffix}:{2 if suffix == 'csv' else 1}"
    (tmp_path / "b.json").write_text(json.dumps(bodies), encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("\r\n \r\n".join(bodies).encode("utf-8-sig"))
    for name in ("b.json", "b.txt"):
        assert [text.text for text in read_corpus(str(tmp_path / name), NOTHING).texts] == bodies


def test_paragraphs_become_lines_of_one_document(tmp_path):
    rows = [{"title": "天", "paragraphs": ["地玄", "", "黃宇\n宙"]}]
    assert cleaned(tmp_path, rows, NOTHING).texts == [Text("地玄\n黃宇\n宙", "天", "rows.jsonl:1")]


def test_a_txt_without_a_blank_line_is_one_text_and_with_them_each_knows_its_line(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("天地\n玄黃\n", encoding="utf-8")
    assert read_corpus(str(file), NOTHING).texts == [Text("天地\n玄黃", id="a.txt:1")]
    file.write_text("\n天地\n\n\n玄黃\n宇宙\n", encoding="utf-8")
    assert [text.id for text in read_corpus(str(file), NOTHING).texts] == ["a.txt:2", "a.txt:5"]


def test_a_folder_is_read_in_order_and_what_is_left_out_is_said(tmp_path, capsys):
    names = ("b/c.txt", "a.TXT", ".hidden.txt", ".git/x.txt", "notes.docx", "README.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"檔案 {name}", encoding="utf-8")
    corpus = read_corpus(str(tmp_path), NOTHING)
    assert [text.id for text in corpus.texts] == ["a.TXT:1", "b/c.txt:1"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "notes.docx" in said[0] and "README.txt" in said[0] and "hidden" not in said[0]


def test_a_hub_data_set_is_named_with_its_commit(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", [document(0)])
    asked = []
    monkeypatch.setattr(
        hub_dataset, "fetch_dataset", lambda *words: asked.append(words) or (tmp_path, "0123456789abcdef")
    )
    assert read_corpus("some/texts", NOTHING).origin == "some/texts main (0123456789ab)"
    assert read_corpus("some/texts", NOTHING, "v2").origin.startswith("some/texts v2 ")
    assert [words[:3] for words in asked] == [
        ("some/texts", "main", "--dataset"), ("some/texts", "v2", "--dataset")
    ]  # fmt: skip


BAD = [
    ({"text": ""}, "text 是空的"), ({"text": 5}, "得到 int"), ({"text": ["天"]}, "得到 list"),
    (7, "得到 int"),
    ({"paragraphs": ["天", 3]}, "得到 int"), ({"paragraphs": []}, "paragraphs 是空的"),
    ({"body": "天"}, "有的是 body"),
    ({"text": "天", "title": ["地"]}, "title"), ({"text": None}, "text 是空的"),
    ("  ", "text 是空的"), ({}, "空的物件"),
]  # fmt: skip


def test_bad_rows_are_reported_all_together_or_left_out(tmp_path):
    file = tmp_path / "a.jsonl"
    body = "\n".join(json.dumps(row) for row, _ in BAD)
    file.write_text(f"{body}\n{{\n" + json.dumps({"text": "天地"}), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_corpus(str(file), NOTHING)
    found = caught.value.problems
    for line, (_, reason) in enumerate(BAD, 1):
        assert found[line - 1].startswith(f"{file}:{line}：") and reason in found[line - 1], line
    assert "不是 JSON" in found[len(BAD)] and "--on_bad_rows skip" in found[-1]
    corpus = read_corpus(str(file), NOTHING, on_bad_rows="skip")
    assert [text.text for text in corpus.texts] == ["天地"] and corpus.skipped == found[:-1]


def test_a_file_of_one_problem_is_not_reported_row_by_row(tmp_path):
    rows = [{"body": "天"}] * 500
    with pytest.raises(UserError) as caught:
        cleaned(tmp_path, rows, NOTHING)
    assert len(caught.value.problems) < 15 and "另有 490 列" in caught.value.problems[-2]


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_a_text_of_an_encoding_that_cannot_be_detected_is_shown_as_each_of_them(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes("text\n很好吃\n".encode("gbk"))
    with pytest.raises(UserError, match="「很好吃」.*--encoding gb18030"):
        read_corpus(str(file), NOTHING)


def test_questions_given_by_mistake_are_recognised(tmp_path):
    for row, task in (
        ({"question": "天？", "A": "地", "B": "玄", "answer": "A"}, "--task sft 或 --task exam"),
        ({"question": "天？", "choices": ["地", "玄"], "answer": 0}, "--task exam"),
        ({"instruction": "天", "input": "", "output": "地"}, "--task sft"),
        ({"messages": [{"role": "user", "content": "天"}]}, "--task sft"),
        ({"conversations": [{"from": "human", "value": "天"}]}, "--task sft"),
    ):
        with pytest.raises(UserError, match=f"看起來是.*{task}"):
            read_corpus(write(tmp_path / "q.jsonl", [row]), NOTHING, on_bad_rows="skip")
    assert cleaned(tmp_path, [{"text": "天", "question": "?", "A": "x"}], NOTHING).texts


def test_texts_are_in_the_column_that_is_named_or_in_one_of_the_usual_names(tmp_path):
    row = {"id": "1", "review": "天地", "內文": "玄黃"}
    (tmp_path / "a.csv").write_text("id,review,內文\n1,天地,玄黃\n", encoding="utf-8")
    for source in (write(tmp_path / "a.jsonl", [row]), str(tmp_path / "a.csv")):
        for column, text in (("review", "天地"), ("", "玄黃")):
            corpus = read_corpus(source, NOTHING, text_column=column)
            assert [one.text for one in corpus.texts] == [text]
        with pytest.raises(UserError, match="沒有 body 這一欄，有的是 id、review、內文；用 --text_column"):
            read_corpus(source, NOTHING, text_column="body")


def test_the_column_of_the_texts_is_named_by_a_flag(train, tmp_path, capsys):
    rows = [{"body": "天地玄黃" * at} for at in range(1, 20)]
    words = ["--task", "mlm", "--min_chars", 1, "--inspect", "--dataset", write(tmp_path / "b.jsonl", rows)]
    assert train(*words, "--text_column", "body", base=False) == 0
    assert "讀到 19 篇" in capsys.readouterr().out
    assert train(*words, base=False) == 2 and "--text_column" in capsys.readouterr().err


def test_what_is_not_there_or_empty_is_an_error_that_names_it(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    for source, told in (("./none.txt", "沒有這個"), (f"{tmp_path}/empty.txt", "空的檔案")):
        with pytest.raises(UserError, match=told):
            read_corpus(source, NOTHING)
    (tmp_path / "empty.txt").unlink()
    with pytest.raises(UserError, match="沒有文字檔"):
        read_corpus(str(tmp_path), NOTHING)


def test_nothing_left_names_what_took_it_and_the_flags(tmp_path):
    with pytest.raises(UserError, match="讀到 2 篇.*太短 2 篇.*--min_chars.*100.*--clean"):
        cleaned(tmp_path, ["天地", "玄黃"], Cleaning())


def test_flags_that_cannot_be_meant_are_refused():
    with pytest.raises(UserError, match="--clean.*'url'.*near_duplicates"):
        Cleaning(("url",))
    with pytest.raises(UserError, match="--min_chars 50 .*--max_chars 20"):
        Cleaning(min_chars=50, max_chars=20)


# ---- cleaning, line by line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        ("看https://a.tw/x?q=1，很好", "看，很好", 1), ("到www.abc.com.tw看看", "到看看", 1),
        ("天（http://a.tw/wiki/A_(b)）地", "天地", 1), ("天 [ https://a.tw ] 地", "天 地", 1),
        ("見 http://a.tw. 然後", "見. 然後", 1), ("f() (https://c.d, http://e.f) 尾", "f() 尾", 2),
        ("（見 http://a.tw）", "（見）", 1), ("HTTPS://A.TW/中文", "中文", 1),
        ("http 與 www 與 a@www.x.tw", "http 與 www 與 a@www.x.tw", 0), ("http://", "http://", 0),
    ],
)  # fmt: skip
def test_addresses_go_with_the_brackets_they_leave_empty(before, after, count):
    assert without_urls(before) == (after, count)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["1. 天", "2. 地"], ["天", "地"]), (["12、天", "13、地", "14、玄"], ["天", "地", "玄"]),
        (["（三）天", "（四）地", "（五）玄"], ["天", "地", "玄"]), (["(1) 天", "(2)地"], ["天", "地"]),
        (["①天", "② 地"], ["天", "地"]), (["一、天", "(1)地", "(2)玄", "二、黃"], ["天", "地", "玄", "黃"]),
        (["九、天", "十、地", "十一、玄"], ["天", "地", "玄"]), (["１．天", "２．地"], ["天", "地"]),
        (["十九、天", "二十、地", "二十一、玄"], ["天", "地", "玄"]),
        (["序", "1. 天", "說明", "2. 地"], ["序", "天", "說明", "地"]),
        (["1. 2020年", "2. 3D"], ["2020年", "3D"]),
    ],
)  # fmt: skip
def test_paragraph_numbers_in_sequence_go(before, after):
    cuts = numbered(before)
    assert [line[cuts.get(at, 0) :] for at, line in enumerate(before)] == after


@pytest.mark.parametrize(
    "lines",
    [
        ["1949年天", "1950年地", "1951年玄"], ["3.14 是", "4.15 是", "5.16 是"], ["1. 天"],
        ["1. 天", "5. 地", "3. 玄"],
        ["13. 天", "14. 地"], ["一、二年級", "二、三年級"], ["1.1 天", "1.2 地"], ["一天", "二地"],
        ["1、2月", "2、3月"], ["1. 天", "（二）地"],
    ],
)  # fmt: skip
def test_what_only_begins_with_a_number_keeps_it(lines):
    assert numbered(lines) == {}


def test_rows_of_one_title_are_numbered_together(tmp_path):
    rows = [{"title": "天", "paragraph": "1. 地"}, {"title": "玄", "paragraph": "1. 黃"}]
    rows.append({"title": "天", "paragraph": "2. 宇"})
    corpus = cleaned(tmp_path, rows, only("numbering"))
    assert [text.text for text in corpus.texts] == ["地", "1. 黃", "宇"] and corpus.counts["numbering"] == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("你好,世界!!!", "你好，世界！"), ("他說:「好」,走了...", "他說：「好」，走了……"),
        ("好。。。真的", "好……真的"),
        ("天(abc, def)地", "天（abc, def）地"), ("天 (笑) 地", "天（笑）地"), ("他（笑)說", "他（笑）說"),
        ("ＡＢＣ１２３", "ABC123"), ("天\u3000\u3000 地", "天 地"),
        ("a\u200b天\ufeff\x07", "a天"), ("你說...?", "你說……？"),
        ("天；；地、、玄，，黃", "天；地、玄，黃"), ("天……地", "天……地"),
        ("e\u0301 n\u0300", "é ǹ"), ("一人, 兩人", "一人，兩人"), (":…天", ":……天"), ("天:…", "天：……"),
    ],
)  # fmt: skip
def test_punctuation_among_chinese_is_chinese(before, after):
    done, count = tidy(before)
    assert done == after and (count > 0) == (before != after)


@pytest.mark.parametrize(
    "line",
    [
        "一人做賊，一鄉受罪（tsi̍t-lâng tsò-tsha̍t, tsi̍t hiong siū-tsuē）", "多謝你！（To-siā--lí!）",
        "下昏暗（ing-àm | ē-hng-àm）", "Góa boeh tò-khì, lí leh? (hó·-lâng) o͘ m̄ tsi̍t-ê...",
        "下午3:30，1,000元", "Hello, world (test) ok...", "f(x) = std::max(a, b); 3.14", "第1, 2章",
        "天——地～",
    ],
)  # fmt: skip
def test_romanised_words_and_their_punctuation_are_left_as_they_are(line):
    assert tidy(line) == (line, 0)


def test_tidying_keeps_every_letter_and_combining_mark_and_settles_at_once():
    rng = random.Random(0)
    pieces = [
        *"天地，。！？；：、（）「」,;:?!().… \u3000-|",
        "tsi̍t",
        "m̄",
        "o͘",
        "ǹ",
        "ａ",
        "...",
        "。。。",
        "\u200b",
        "n\u0300",
    ]
    for _ in range(3000):
        line = "".join(rng.choices(pieces, k=rng.randint(1, 15)))
        done = tidy(line)[0]

        def kept(text):
            letters = unicodedata.normalize("NFKD", text)
            return [c for c in letters if unicodedata.category(c)[0] in "LMN"]

        assert kept(done) == kept(line.strip()), line
        assert tidy(done) == (done, 0), line


# ---- cleaning, documents -----------------------------------------------------------------------------------


def test_rows_of_one_title_become_one_document_in_order(tmp_path):
    rows = [
        {"title": t, "text": x} for t, x in (("天", "一"), ("地", "二"), ("天", "三"), ("", "四"), ("", "五"))
    ]
    corpus = cleaned(tmp_path, rows, only("titles"))
    assert [text.text for text in corpus.texts] == ["一\n三", "二", "四", "五"]
    assert corpus.counts["titles"] == 1


def test_parts_are_the_whole_text_none_too_long_and_tiny_only_to_keep_a_sentence():
    rng = random.Random(1)
    ends = ["。", "，", "？」", "\n", "……", "! ", ""]
    tiny = 0
    for trial in range(300):
        low, high = 10, rng.choice((60, 100, 200))
        pieces = [
            (document(rng.random(), rng.randint(1, rng.choice((15, 40, 150)))), end)
            for end in rng.choices(ends, k=rng.randint(1, 60))
        ]
        text = "".join(piece + end for piece, end in pieces).strip()
        parts = parts_of(text, low, high)
        assert max(map(len, parts)) <= high, trial
        assert "".join("".join(parts).split()) == "".join(text.split())
        assert all(part == part.strip() and part for part in parts)
        assert parts_of(text, low, len(text)) == [text]
        at = 0
        for part in parts:
            start = text.index(part, at)
            before, at = text[:start], start + len(part)
            if len(part) < low < len(text):
                tiny += 1
                cut = (before if part is parts[-1] else text[:at]).rstrip()
                assert text[len(cut)] == "\n" or cut[-1] in "。」…!", trial
    assert tiny < 100


def test_a_text_is_cut_at_the_end_of_sentences_into_parts_of_about_one_length():
    sentences = [
        f"{document(seed, 17)}{end}" for seed, end in enumerate(["。", "？」", "！", "……』", "\n"] * 40)
    ]
    parts = parts_of("".join(sentences), 50, 300)
    ends = {"".join(sentences[:n]).replace("\n", "") for n in range(1, len(sentences) + 1)}
    done = ""
    for part in parts:
        done += part.replace("\n", "")
        assert done in ends
    assert (
        max(map(len, parts)) - min(map(len, parts)) <= 60 and len(parts) <= len("".join(sentences)) / 300 + 2
    )


def test_a_long_sentence_is_cut_at_commas_then_at_spaces_and_never_before_a_combining_mark():
    commas = "，".join(document(seed, 12) for seed in range(30))
    assert all(part.endswith("，") for part in parts_of(commas, 10, 100)[:-1])
    words = " ".join(["tsi̍t-lâng"] * 60)
    assert all(set(part.split()) == {"tsi̍t-lâng"} for part in parts_of(words, 10, 100))
    marks = "i\u030d" * 333 + "o\u0358\u0301" * 100
    for high in (7, 50, 51, 52):
        parts = parts_of(marks, 1, high)
        assert "".join(parts) == marks and not any(unicodedata.combining(part[0]) for part in parts)
    assert "".join(parts_of("天" + "\u0301" * 99, 1, 10)) == "天" + "\u0301" * 99


def test_the_rest_is_no_tiny_part_when_sentences_allow_it():
    text = "".join(document(seed, 29) + "。" for seed in range(7))  # 210 characters, 200 fit
    assert [len(part) for part in parts_of(text, 50, 200)] in ([90, 120], [120, 90])
    sentence = document(8, 195) + "，" + document(9, 9)
    assert min(map(len, parts_of(sentence, 50, 200))) >= 50


def test_short_documents_are_dropped_and_long_ones_cut_with_their_parts_named(tmp_path):
    long = "".join(document(seed, 40) + "。" for seed in range(20))
    corpus = cleaned(tmp_path, ["天地", long, document(99)], Cleaning(max_chars=400))
    counts = corpus.counts
    assert (counts["too_short"], counts["cut"], counts["parts"]) == (1, 1, len(corpus.texts) - 1)
    assert corpus.texts[0].id == "rows.jsonl:2#1" and corpus.texts[-1].whole == ""
    assert len({text.whole for text in corpus.texts[:-1]}) == 1 and corpus.texts[0].whole


def test_the_same_text_counts_once_whatever_its_punctuation(tmp_path):
    body = document(0)
    rows = [body, document(1), f"{body[:50]}， {body[50:]}。"]
    corpus = cleaned(tmp_path, rows, only("duplicates"))
    assert [text.text for text in corpus.texts] == rows[:2] and corpus.counts["duplicates"] == 1


def slow_jaccard(first: str, second: str) -> float:
    def of(text):
        text = normalised(text)
        return {text[i : i + 5] for i in range(len(text) - 4)}

    return len(of(first) & of(second)) / len(of(first) | of(second))


def test_of_nearly_the_same_texts_the_first_stays(tmp_path):
    rows = []
    for seed, share in enumerate((0.95, 0.9, 0.85, 0.5, 0.4, 0.2)):
        first = document(seed, 500)
        second = first[: int(500 * share)] + document(100 + seed, 500)[int(500 * share) :]
        assert not 0.55 < slow_jaccard(first, second) < 0.72
        rows += [first, second]
    corpus = cleaned(tmp_path, rows, only("near_duplicates"))
    assert corpus.counts["near_duplicates"] == 3
    assert [text.text for text in corpus.texts] == [row for n, row in enumerate(rows) if n not in (1, 3, 5)]


def test_looking_for_near_duplicates_does_not_compare_each_with_each(tmp_path, monkeypatch):
    calls = Counter()
    overlap = contamination.overlap
    monkeypatch.setattr(contamination, "overlap", lambda *two: calls.update(n=1) or overlap(*two))
    common = document(0, 60)
    rows = [document(seed, 60) + common for seed in range(1, 601)]
    assert len(cleaned(tmp_path, rows, only("near_duplicates"))) == 600
    assert 0 < calls["n"] <= contamination.LIKELY * 600


def test_each_step_is_a_switch(tmp_path):
    long = "".join(document(seed, 40) + "。" for seed in range(20))
    rows = [
        {"title": "天", "paragraphs": ["1. 看http://a.tw,好", "2. 地"]}, {"title": "天", "text": document(5)},
        {"text": long}, {"text": "短"}, {"text": document(7)},
        {"text": document(7)}, {"text": document(7)[5:]},
    ]  # fmt: skip
    everything = Cleaning(max_chars=400)
    done = cleaned(tmp_path, rows, everything).counts
    assert all(done[step] for step in corpus_report.DONE), done
    for step in CLEANING:
        without = Cleaning(tuple(other for other in CLEANING if other != step), max_chars=400)
        assert step not in cleaned(tmp_path, rows, without).counts
        alone = cleaned(tmp_path, rows, Cleaning((step,), max_chars=400))
        assert set(alone.counts) & set(corpus_report.DONE) == (
            {"too_short", "cut"} if step == "length" else {step}
        )
    assert cleaned(tmp_path, rows, Cleaning(CLEANING[::-1], max_chars=400)) == cleaned(
        tmp_path, rows, everything
    )
    untouched = cleaned(tmp_path, rows, NOTHING)
    assert untouched.texts[0].text == "1. 看http://a.tw,好\n2. 地" and len(untouched) == len(rows)


# ---- splitting ---------------------------------------------------------------------------------------------


def test_a_documents_place_does_not_depend_on_the_others():
    rows = [Text(document(seed, 30)) for seed in range(2000)]
    ratio = (0.7, 0.25, 0.05)
    parts = split_texts(rows, ratio, seed=1)
    assert sorted(map(id, rows)) == sorted(id(text) for part in parts for text in part)
    for part, share in zip(parts, ratio, strict=True):
        assert len(part) / 2000 == pytest.approx(share, abs=0.04)
    for part, fewer in zip(parts, split_texts(rows[::-3], ratio, seed=1), strict=True):
        assert {text.text for text in fewer} == {text.text for text in part} & {t.text for t in rows[::-3]}
    assert split_texts(rows, ratio, seed=2) != parts
    dressed = split_texts([Text(f" {text.text}。") for text in rows], ratio, seed=1)
    assert list(map(len, dressed)) == list(map(len, parts))
    assert split_texts(rows, (1.0, 0.0, 0.0), seed=1)[0] == rows


def test_the_parts_of_one_document_stay_on_one_side():
    titled = [Text(document(n, 30), title=f"題{n // 5}") for n in range(300)]
    cut = [Text(document(n, 30), whole=f"文{n // 5}") for n in range(300)]
    for rows in (titled, cut):
        parts = split_texts(rows, (0.5, 0.3, 0.2), seed=3)
        sides = [{text.title + text.whole for text in part} for part in parts]
        assert all(sides) and sum(map(len, sides)) == 60


def test_a_corpus_of_one_document_is_split_between_its_parts():
    rows = [Text(document(n, 30), whole="文") for n in range(100)]
    assert all(split_texts(rows, (0.5, 0.3, 0.2), seed=3))


# ---- telling -----------------------------------------------------------------------------------------------


def test_the_page_shows_every_step_with_its_count_and_the_changed_place(tmp_path):
    rows = [
        {"text": document(1, 300) + "看http://a.tw/x好"},
        {"text": document(2, 300) + ",天" + document(3, 300)},
        {"text": "短"}, {"text": "一、天地\n二、玄黃" + document(4)},
        {"text": document(2, 300) + "天" + document(3, 300)},
    ]  # fmt: skip
    corpus = cleaned(tmp_path, rows, Cleaning())
    page = format_report(corpus, width=80)
    for told in (
        "讀到 5 篇",
        "清理後 3 篇",
        "刪去 1 個",
        "【http://a.tw/x】",
        "【,】天",
        "【，】天",
        "丟 短",
        "【一、】天地",
    ):
        assert told in page, told
    assert "太長的文章：沒有" in page and "重複的文章：丟掉 1 篇" in page
    lines = page.splitlines()[1:]  # the first one names the file, however long its path is
    wide = [sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in lines]
    assert max(wide) <= 84
    lengths = sorted(len(text.text) for text in corpus.texts)
    assert f"中位數 {lengths[1]} 字，最短 {lengths[0]} 字，最長 {lengths[2]} 字" in page


def test_what_cannot_be_seen_is_shown_by_its_code(tmp_path):
    page = format_report(
        cleaned(tmp_path, ["天\u200b地", "kh\u006e\u0300g", "\uf92d囥"], only("punctuation"))
    )
    for told in (
        "天【‹U+200B›】地",
        "kh【n\u0300‹U+006E U+0300›】g",
        "kh【ǹ‹U+01F9›】g",
        "‹U+F92D›",
        "‹U+4F86›",
    ):
        assert told in page, told


def test_examples_are_few_short_and_begin_near_the_change(tmp_path):
    rows = [document(seed, 5000) + ",天" for seed in range(9)]
    pairs = cleaned(tmp_path, rows, only("punctuation")).examples["punctuation"]
    assert len(pairs) == 3
    for before, after in pairs:
        assert len(before) <= EXCERPT + 1 and before.endswith(",天") and after.endswith("，天")


def test_the_same_is_reported_as_json_and_in_lines(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    write(file, [document(1) + ",天", {"body": 1}, document(1) + "天"])
    corpus = read_corpus(str(file), Cleaning(), on_bad_rows="skip")
    found = json.loads(json.dumps(as_dict(corpus)))
    assert (found["texts"], found["characters"], found["longest_characters"]) == (1, 202, 202)
    assert found["counts"]["duplicates"] == 1 and found["unusable"] == corpus.skipped != []
    assert found["examples"]["punctuation"][0]["after"].endswith("，天")
    describe(corpus)
    said = capsys.readouterr().err
    assert "1 篇，202 字" in said and "改了 1 處" in said and "網址" not in said and f"{file}:2" in said
