"""A question as token ids."""

import random
from collections import Counter

import pytest
from conftest import HAN, random_text

from finetune.data.question import Question, Statement
from finetune.prompts.exam import ExamPrompts, PromptTooLongError, Template
from finetune.prompts.option_order import cyclic_orders, pinned_options, rearranged, refers_to_other_options
from finetune.runtime.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded[1]


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(list(ids))


def test_truncation_never_loses_an_option_or_the_blank(tokenizer):
    rng, prompts = random.Random(0), ExamPrompts(tokenizer, 64)
    for _ in range(200):
        options = tuple(random_text(rng, 1, 6) for _ in range(rng.randint(2, 5)))
        stem = random_text(rng, 5, 200)
        prompt = prompts.mcq_prompt(Question(stem, options, 0), range(len(options)))
        text = "".join(words(tokenizer, prompt.ids))
        assert len(prompt.ids) <= 64
        assert all(option in text for option in options)
        assert (
            words(tokenizer, prompt.ids).count("[MASK]") == 1 and prompt.ids[prompt.blank[0]] == prompts.mask
        )
        if prompt.cut:
            assert stem[:3] in text and stem[-3:] in text and "…" in text and len(prompt.ids) == 64
        else:
            assert stem in text


def test_options_that_do_not_fit_by_themselves_are_refused_not_cut(tokenizer):
    question = Question("天？", (HAN, HAN[1:]), 0)
    with pytest.raises(PromptTooLongError):
        ExamPrompts(tokenizer, 64).mcq_prompt(question, (0, 1))


def test_special_words_inside_a_question_are_text(tokenizer):
    question = Question("[MASK]天[SEP]", ("[CLS]", "[PAD]地"), 0)
    prompts = ExamPrompts(tokenizer, 128)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    ids = prompts.mcq_prompt(question, (0, 1)).ids
    assert [i for i in ids if i in special] == [prompts.start, prompts.mask, prompts.end]
    assert sum(i in special for i in prompts.cloze_prompt(question, 1).ids) == 2


def test_the_verbalizer_is_one_known_token_for_each_place_and_all_differ(tokenizer):
    ids = ExamPrompts(tokenizer, 64).verbalizer_ids(10)
    assert len(set(ids)) == 10 and tokenizer.unk_token_id not in ids
    assert words(tokenizer, ids) == list("abcdefghij")  # the vocabulary has no capitals


def test_a_vocabulary_without_letters_and_digits_has_no_verbalizer(tmp_path):
    from transformers import BertTokenizer

    bare = BertTokenizer(
        vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "天"])}
    )
    with pytest.raises(UserError, match="代表選項"):
        ExamPrompts(bare, 64).verbalizer_ids(2)


def test_the_blank_of_a_plain_prompt_is_the_text_of_the_option(tokenizer):
    prompts = ExamPrompts(tokenizer, 128)
    question = Question("天？", ("地玄黃", "無"), 0)
    for option, text in enumerate(question.options):
        prompt = prompts.cloze_prompt(question, option)
        assert "".join(words(tokenizer, [prompt.ids[i] for i in prompt.blank])) == text
    told = prompts.statement_prompt(Statement("天是地玄黃。", 2, 5))
    assert "".join(words(tokenizer, [told.ids[i] for i in told.blank])) == "地玄黃"


@pytest.mark.parametrize(
    "option",
    [
        "以上皆是",
        "以上皆非",
        "皆是",
        "以上都對",
        "上述三者皆是",
        "均不正確",
        "全部皆是",
        "所有選項皆正確",
        "無正確答案",
    ],
)
def test_an_option_that_sums_up_the_others_is_known(option):
    assert refers_to_other_options(option) == "above"


@pytest.mark.parametrize(
    "option", ["A與C", "AB", "ABC", "A、B皆是", "（A）（B）", "只有A", "A和B都正確", "選項A與B皆正確", "ＡＢ"]
)
def test_an_option_that_names_others_by_letter_is_known(option):
    assert refers_to_other_options(option) == "letters"


@pytest.mark.parametrize(
    "option",
    [
        "DNA",
        "CO",
        "B群鏈球菌",
        "CH4",
        "100℃以上",
        "A",
        "皆高於平均範圍",
        "全民皆有影響",
        "外觀完整，乾溼皆可",
    ],
)
def test_an_option_that_stands_alone_may_move(option):
    assert refers_to_other_options(option) == ""


def test_options_that_speak_of_others_keep_their_place():
    assert pinned_options(("甲", "乙", "丙", "以上皆是")) == (3,)
    assert pinned_options(("甲", "以上皆是", "丙", "丁")) == (
        0,
        1,
        2,
        3,
    )  # not the last: it speaks of those before
    assert pinned_options(("甲", "乙", "丙", "A與C")) == (0, 1, 2, 3)
    rng = random.Random(0)

    def shuffled(places):
        rng.shuffle(places)
        return places

    orders = {rearranged(("甲", "乙", "丙", "以上皆是"), shuffled) for _ in range(200)}
    assert len(orders) == 6 and all(order[3] == 3 for order in orders)


@pytest.mark.parametrize("options", [("甲", "乙", "丙", "丁"), ("甲", "乙", "丙", "以上皆非"), ("甲", "乙")])
def test_cyclic_orders_show_every_movable_option_once_at_every_movable_place(options):
    orders = cyclic_orders(options)
    for place in set(range(len(options))) - set(pinned_options(options)):
        assert Counter(order[place] for order in orders).most_common(1)[0][1] == 1


def test_a_template_from_a_run_card_must_have_its_places():
    kept = Template(listed="{stem}|{options}|{blank}")
    assert Template.from_dict(kept.as_dict()) == kept
    with pytest.raises(UserError, match="blank"):
        Template.from_dict({"listed": "{stem}{options}"})
