"""Two revisions of an exam, joined by content."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from finetune.data.exam_revisions import duplicates, join_revisions
from finetune.data.question import Question

LONG = "關於臺灣各縣市的地理位置、氣候與主要產業，下列敘述何者最為正確"


def question(
    stem: str, options=("甲一", "乙二", "丙三", "丁四"), answer=0, subject="physics", row_id=""
) -> Question:
    return Question(stem, tuple(options), answer, subject, row_id or stem)


def kinds(join) -> list[tuple[str, str, str]]:
    """(kind, id in the old one, id in the new one) of each question."""
    rows = [(p.change or p.kind, join.old[p.old].id, join.new[p.new].id) for p in join.pairs]
    rows += [("gone", join.old[place].id, "") for place in join.gone]
    return rows + [("added", "", join.new[place].id) for place in join.added]


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (question("水的沸點？"), question("水的沸點？"), "unchanged"),
        (question("水的沸點 ？"), question("水的　沸點?"), "unchanged"),  # widths and white space alone
        (question("水的沸點？"), question("水的沸點？", answer=2), "key_changed"),
        (question("甲>乙？"), question("甲<乙？"), "stem"),  # a sign is no mere punctuation
        (question(LONG + "？"), question(LONG + "呢？"), "stem"),
        (question(LONG), question(LONG, ("甲一", "乙二", "丙三", "戊五")), "options"),
        (question(LONG), question(LONG, ("全", "部", "換", "掉")), "options"),  # the stem is long and unique
        (  # too short for most of its 5-grams to stay, but no other question has these options
            question("工程估價時，下列何者之費用最高？", ("管理費", "保險費", "工資", "稅金")),
            question("工程估價時，下列何者費用最高呢？", ("管理費", "保險費", "工資", "稅金")),
            "stem",
        ),
        (question("何者正確？"), question("何者正確？", ("甲一", "乙二", "丙三", "戊五")), "options"),
        (question("何者正確？"), question("何者正確？", ("乙二", "甲一", "丙三", "丁四")), "order"),
        (
            question(LONG, ("玉山國家公園", "墾丁", "太魯閣", "金門")),
            question(LONG + "呢", ("玉山國家公園", "墾丁", "太魯閣", "馬祖")),
            "stem_and_options",
        ),
    ],
)  # fmt: skip
def test_a_question_stays_changes_its_key_or_its_text(old, new, kind):
    (found,) = join_revisions([old], [new]).pairs
    assert (found.change or found.kind) == kind


def test_questions_that_share_only_a_template_are_not_one_question():
    old = [question("下列何者正確？", ("貓", "狗", "魚", "鳥"), row_id="a")]
    new = [question("下列何者正確？", ("金", "銀", "銅", "鐵"), row_id="b")]
    assert kinds(join_revisions(old, new)) == [("gone", "a", ""), ("added", "", "b")]
    twice = [question(LONG, [f"{x}{number}是完全不同的一個選項" for number in range(4)]) for x in "鳥蟲"]
    changed = question(LONG, ["金山在北海岸", "銀杏秋天變黃", "銅鑼在苗栗縣", "鐵路繞行全島"])
    assert not join_revisions(twice, [changed]).pairs  # of which of them is it the new text?
    assert len(join_revisions(twice[:1], [changed]).pairs) == 1


def test_rows_that_move_are_found_and_the_joins_of_equal_rows_do_not_depend_on_luck():
    old = [
        question("同", subject="art", row_id="1"),
        question("同", row_id="2"),
        question("同", answer=1, row_id="3"),
        question("移", subject="art", row_id="4"),
    ]  # fmt: skip
    new = [
        question("移", subject="law", row_id="a"),
        question("同", answer=1, row_id="b"),
        question("同", row_id="c"),
    ]  # fmt: skip
    join = join_revisions(old, new)
    assert kinds(join) == [
        ("unchanged", "4", "a"), ("unchanged", "3", "b"), ("unchanged", "2", "c"), ("gone", "1", ""),
    ]  # fmt: skip
    assert (duplicates(old), duplicates(new)) == (2, 1)
    subjects = join.by_subject()
    assert subjects["art"] | {"gone": 1, "old_rows": 2, "new_rows": 0, "unchanged": 0} == subjects["art"]
    assert subjects["law"]["unchanged"] == 1 and subjects["physics"]["unchanged"] == 2


def test_of_questions_that_resemble_one_another_the_nearest_are_joined():
    passage = (
        "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜金生麗水玉出崑岡"
    )
    siblings = [f"{passage}，以{place}為例" for place in ("臺北", "高雄", "花蓮")]
    old = [question(stem) for stem in siblings]
    new = [question(stem + "。答", row_id=stem) for stem in reversed(siblings)]
    join = join_revisions(old, new)
    assert [p.kind for p in join.pairs] == ["text_changed"] * 3
    assert all(join.old[p.old].id == join.new[p.new].id for p in join.pairs)


def test_every_row_is_counted_once_and_the_nearest_are_joined_whatever_the_order():
    """Against a brute-force count of what was done to the rows, in 30 shuffles."""
    rng = random.Random(3)
    characters = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜"

    def text(count: int) -> str:
        return "".join(rng.choice(characters) for _ in range(count))

    old = [question(text(30), [text(8) for _ in range(4)], n % 4, row_id=str(n)) for n in range(60)]
    new = [replace(q, answer=(q.answer + 1) % 4) if n < 10 else q for n, q in enumerate(old)]
    new[10:15] = [replace(q, stem=q.stem[:-1] + "改") for q in new[10:15]]
    new[15:18] = [replace(q, options=(*q.options[:3], text(8))) for q in new[15:18]]
    del new[50:]
    new += [question(text(30), [text(8) for _ in range(4)], 0, row_id=f"+{n}") for n in range(7)]
    for _ in range(30):
        rng.shuffle(old)
        rng.shuffle(new)
        join = join_revisions(old, new)
        expected = {"unchanged": 32, "key_changed": 10, "text_changed": 8, "gone": 10, "added": 7}
        assert join.counts == expected
        assert all(join.old[p.old].id == join.new[p.new].id for p in join.pairs)
        assert len(join.shared) == 42 and [p.new for p in join.pairs] == sorted(p.new for p in join.pairs)
