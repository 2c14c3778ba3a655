"""Prompts of a causal model, token by token, compared with what its chat template writes."""

import random
from itertools import permutations

import pytest
from conftest import CHAT, CHATML, random_text

from finetune.data.question import LETTERS, Question
from finetune.models.tokenizer import load_tokenizer
from finetune.objectives.causal_lm import InstructionObjective
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import Chat
from finetune.prompts.exam import PromptTooLongError
from finetune.runtime.errors import UserError

SPACED = (  # as Llama 2's and Mistral's: spaces around what the assistant says, no opening of its turn
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} <|im_end|>"
    "{% else %}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)
# As Qwen 3's: something stands before what the assistant says that is not there yet in its prompt.
LINED = CHATML.replace(
    "{{ message.content }}",
    "{% if message.role == 'assistant' %}{{ '--\\n\\n' }}{% endif %}{{ message.content }}",
)
FORGETFUL = CHATML.replace("messages %}", "messages[-2:] %}", 1)
TEMPLATES = {"chatml": CHATML, "spaced": SPACED, "lined": LINED}

SYSTEM = {"role": "system", "content": "你是天地之間的雲"}
CHATS = [CHAT[:2], CHAT[:4], CHAT, [SYSTEM, *CHAT[:2]], [SYSTEM, *CHAT]]


def tokenizer_of(folder, template=None):
    tokenizer = load_tokenizer(folder, "--model_path", "causal")
    if template:
        tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=TEMPLATES)
def chat(request, qwen_dir):
    return Chat(tokenizer_of(qwen_dir, TEMPLATES[request.param]), "chat")


@pytest.fixture
def plain(llama_dir):
    return Chat(tokenizer_of(llama_dir), "plain")


def by_template(chat, messages, **more) -> list[int]:
    """The template's own tokens."""
    return list(chat.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **more))


def passage_of(chat, messages) -> tuple[list[int], list[range]]:
    """The one passage that a conversation is trained on as: its ids, and where the assistant speaks."""
    (passage,) = chat.conversation(messages)
    return passage.ids, passage.reply_spans


def question(stem="天地玄黃？", count=4, answer=1) -> Question:
    rng = random.Random(count)
    return Question(stem, tuple(random_text(rng, 2, 6) for _ in range(count)), answer, id="x")


# ---- the template ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", CHATS)
def test_a_prompt_is_the_tokens_of_the_template(chat, messages):
    for end in range(1, len(messages) + 1):
        if messages[end - 1]["role"] == "user":
            wanted = by_template(chat, messages[:end], add_generation_prompt=True)
            assert chat.prompt(messages[:end]) == wanted


@pytest.mark.parametrize("messages", CHATS)
def test_a_conversation_is_the_tokens_of_the_template_up_to_its_last_end(chat, messages):
    ids, _ = passage_of(chat, messages)
    whole = by_template(chat, messages)
    last = max(at for at, token in enumerate(whole) if token == chat.end)
    assert chat.tokenizer.decode([chat.end]) == "<|im_end|>"
    assert ids == whole[: last + 1]


@pytest.mark.parametrize("messages", CHATS)
def test_the_targets_are_what_the_assistant_says_and_its_end_alone(chat, messages):
    ids, spoken = passage_of(chat, messages)
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    found = [chat.tokenizer.decode(ids[turn.start : turn.stop]) for turn in spoken]
    bare = [text.removeprefix("--").replace(" <|im_end|>", "<|im_end|>").strip() for text in found]
    assert bare == [text + "<|im_end|>" for text in said]
    assert all(ids[turn.stop - 1] == chat.end for turn in spoken)
    # and each begins where a prompt ends
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    for turn, at in zip(spoken, turns, strict=True):
        assert ids[: turn.start] == chat.prompt(messages[:at])


@pytest.mark.parametrize("word", ["<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|im_<|im_end|>end|>"])
def test_a_special_token_inside_data_is_never_obeyed(chat, plain, word):
    hostile = [{**message, "content": f"天{word}地{word}"} for message in CHAT]
    for writer in (chat, plain):
        special = set(writer.tokenizer.all_special_ids) | set(writer.tokenizer.added_tokens_decoder)

        def obeyed(ids, special=special):
            return [token for token in ids if token in special]

        assert obeyed(writer.prompt(hostile[:3])) == obeyed(writer.prompt(CHAT[:3]))
        assert obeyed(passage_of(writer, hostile)[0]) == obeyed(passage_of(writer, CHAT)[0])
        asking = CausalExamPrompts(writer, 500)
        asked = Question(f"天{word}？", ("地", word, f"{word}玄"), 0)
        harmless = Question("天？", ("地", "黃", "玄"), 0)
        assert obeyed(asking.mcq_prompt(asked, range(3)).ids) == obeyed(
            asking.mcq_prompt(harmless, range(3)).ids
        )
        assert writer.tokenizer.decode(writer.prompt(hostile[:1])).count("im_") >= 2 * word.count("im_")


def test_the_plain_form_is_written_as_is_said(plain):
    end = plain.tokenizer.eos_token
    asked = "System: 你是天地之間的雲\nUser: 天地玄黃？\nAssistant:"
    first = f"{asked} 宇宙洪荒。{end}"
    assert plain.tokenizer.decode(plain.prompt([SYSTEM, CHAT[0]])) == asked
    assert plain.tokenizer.decode(plain.prompt([SYSTEM, *CHAT[:3]])) == (
        f"{first}\nUser: 日月\n盈昃 Night\nAssistant:"
    )
    ids, spoken = passage_of(plain, [SYSTEM, *CHAT[:4]])
    assert plain.tokenizer.decode(ids) == f"{first}\nUser: 日月\n盈昃 Night\nAssistant: B{end}"
    said = [plain.tokenizer.decode(ids[turn.start : turn.stop]) for turn in spoken]
    assert said == [f" 宇宙洪荒。{end}", f" B{end}"]
    assert ids == plain.ids(plain.tokenizer.decode(ids))  # no seam within a word


def test_the_plain_form_begins_as_the_tokenizer_begins_a_text_and_only_once(llama_dir):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of(llama_dir)
    tokenizer.bos_token = "<|im_start|>"
    start = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    chat = Chat(tokenizer, "plain")
    for ids in (chat.prompt(CHAT[:3]), passage_of(chat, CHAT)[0]):
        assert ids[0] == start and ids.count(start) == 1


def test_without_a_template_the_chat_style_is_refused_and_plain_is_named(llama_dir, tmp_path, train, capsys):
    with pytest.raises(UserError, match="--template plain"):
        Chat(tokenizer_of(llama_dir), "chat")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "天", "output": "地"}\n' * 3, encoding="utf-8")
    words = [
        "--task",
        "sft",
        "--model_name_or_path",
        llama_dir,
        "--dataset",
        tmp_path / "rows.jsonl",
        "--cpu",
    ]
    assert train(*words, base=False) == 2
    assert "--template plain" in capsys.readouterr().err


def test_a_template_that_refuses_a_role_gives_its_reason(qwen_dir):
    strict = (
        "{% if messages[1] and messages[1].role == 'user' %}"
        "{{ raise_exception('Roles must take turns') }}{% endif %}"
    )
    chat = Chat(tokenizer_of(qwen_dir, strict + CHATML), "chat")
    assert chat.prompt(CHAT[:1])
    for refused in (lambda: chat.prompt(CHAT[:1] * 2), lambda: chat.conversation([CHAT[0], *CHAT])):
        with pytest.raises(ValueError, match="Roles must take turns"):
            refused()


# As Qwen 3's: what was thought before earlier replies is dropped, and the last one has a place for it.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% if loop.last %}"
    "{% if '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [FORGETFUL, THINKING])
def test_where_a_template_rewrites_earlier_replies_each_is_trained_on_after_its_own_prompt(
    qwen_dir, template
):
    chat = Chat(tokenizer_of(qwen_dir, template), "chat")
    passages = chat.conversation(CHAT)
    assert len(chat.conversation(CHAT[:2])) == 1 and len(passages) == 3
    for turn, passage in zip((1, 3, 5), passages, strict=True):
        (spoken,) = passage.reply_spans
        assert passage.ids[: spoken.start] == chat.prompt(CHAT[:turn])
        if template == THINKING:
            whole = by_template(chat, CHAT[: turn + 1])
            assert passage.ids == whole[: len(whole) - whole[::-1].index(chat.end)]


def test_what_a_reply_thought_is_written_once_as_the_template_does(qwen_dir):
    chat = Chat(tokenizer_of(qwen_dir, THINKING), "chat")
    for content, written in (("盈", "<think>\n\n</think>\n\n盈"), ("<think>\n月\n</think>\n\n盈",) * 2):
        ids, (spoken,) = passage_of(chat, [CHAT[0], {"role": "assistant", "content": content}])
        assert chat.tokenizer.decode(ids[spoken.start : spoken.stop]) == f"{written}<|im_end|>"


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize("style", ["plain", "spaced"])
def test_with_a_sentencepiece_tokenizer_training_and_prompting_write_the_same_tokens(scheme, style):
    """Llama 2's and Mistral's put a space before a text, or before its first word alone."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("User: Assistant\n[]/sytemABCDEFGHIJ" + "".join(map(str, CHAT))))
    words = ["<unk>", "<s>", "</s>", "▁", *letters]
    pieces = Tokenizer(BPE({word: i for i, word in enumerate(dict.fromkeys(words))}, [], unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    pieces.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = SPACED.replace("<|im_end|>", "</s>")
    chat = Chat(tokenizer, "plain" if style == "plain" else "chat")
    ids, spoken = passage_of(chat, CHAT)
    assert len(spoken) == 3
    for turn, said in zip((1, 3, 5), spoken, strict=True):
        assert ids[: said.start] == chat.prompt(CHAT[:turn])
    asking, asked = CausalExamPrompts(chat, 500), question()
    example = InstructionObjective(asking, [asked], seed=0).example("reply", 0, 0)
    letter = tokenizer.decode([example.targets[0]]).strip()
    assert letter in LETTERS[:4] and example.targets[-1] == chat.end


def test_white_space_around_what_the_assistant_says_is_not_trained_on(chat):
    padded = [CHAT[0], {"role": "assistant", "content": "\n 宇宙洪荒。 \n"}]
    assert chat.conversation(padded) == chat.conversation(CHAT[:2])


# ---- questions ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[*TEMPLATES, "plain"])
def writer(request, qwen_dir, plain):
    if request.param == "plain":
        return plain
    return Chat(tokenizer_of(qwen_dir, TEMPLATES[request.param]), "chat")


@pytest.mark.parametrize("count", range(2, 11))
def test_letters_are_distinct_tokens(writer, count):
    asking = CausalExamPrompts(writer, 500)
    letters = asking.verbalizer_ids(count)
    assert len(set(letters)) == count
    said = [writer.tokenizer.decode([letter]).strip() for letter in letters]
    assert said[:4] == list(LETTERS[: min(count, 4)])


def test_letters_that_the_vocabulary_lacks_are_refused():
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "User", ":", "Assistant", "A", "B"]
    rough = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    rough.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rough, unk_token="<unk>", eos_token="</s>")
    asking = CausalExamPrompts(Chat(tokenizer, "plain"), 500)
    assert len(set(asking.verbalizer_ids(2))) == 2
    with pytest.raises(UserError, match="分不出 A 到 C"):  # the third is <unk>
        asking.verbalizer_ids(3)
    with pytest.raises(UserError, match="分不出 A 到 D"):
        asking.mcq_prompt(question(), range(4))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 3, 0, 1), (1, 0, 3, 2)])
def test_the_logits_at_the_blank_say_the_very_token_that_a_whole_conversation_has_there(writer, order):
    """Against a question and its letter tokenized together, as any conversation is."""
    asked = question()
    asking = CausalExamPrompts(writer, 500)
    prompt = asking.mcq_prompt(asked, order)
    place = order.index(asked.answer)
    messages = [
        *asking.writer.messages(asked, order, asked.stem),
        {"role": "assistant", "content": LETTERS[place]},
    ]
    whole, spoken = passage_of(writer, messages)
    assert prompt.blank == (len(prompt.ids) - 1,)
    assert tuple(whole[: len(prompt.ids)]) == prompt.ids
    assert whole[prompt.blank[0] + 1] == asking.verbalizer_ids(4)[place]
    assert spoken[0].start <= prompt.blank[0] + 1 < spoken[0].stop
    for number, option in enumerate(order):
        assert f"{LETTERS[number]}. {asked.options[option]}" in writer.tokenizer.decode(list(prompt.ids))


def test_the_letter_is_trained_where_scoring_looks_for_it(writer):
    asking, asked, places = CausalExamPrompts(writer, 500), question(), set()
    objective = InstructionObjective(asking, [asked], seed=3)
    for epoch in range(6):
        example = objective.example("reply", 0, epoch)
        at, letter = example.positions[0], example.targets[0]
        place = asking.verbalizer_ids(4).index(letter)
        places.add(place)
        orders = [order for order in permutations(range(4)) if order[place] == asked.answer]
        prompts = [asking.mcq_prompt(asked, order) for order in orders]
        assert any(prompt.ids == example.ids[: at + 1] and prompt.blank == (at,) for prompt in prompts)
        assert example.targets[1:] == tuple(writer.end_ids) and example.targets[-1] == writer.end
    assert len(places) > 1


def test_a_passage_that_is_too_long_is_cut_in_its_middle_and_no_option_ever(writer):
    rng = random.Random(5)
    for length in (90, 150, 300, 1000):
        asked = question("開頭" + random_text(rng, length, length) * 9 + "問甲？", count=5)
        for limit in (140, 200, 400):
            for order in ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1)):
                prompt = CausalExamPrompts(writer, limit).mcq_prompt(asked, order)
                text = writer.tokenizer.decode(list(prompt.ids))
                assert prompt.cut > 0 and limit - 30 <= len(prompt.ids) + 2 <= limit
                assert "開頭" in text and "問甲？" in text and "…" in text
                for place, option in enumerate(order):
                    assert f"{LETTERS[place]}. {asked.options[option]}" in text


def test_a_question_is_refused_only_when_its_options_alone_do_not_fit(writer):
    asked = question("天地玄黃宇宙洪荒日月盈昃" * 40)
    bare = len(CausalExamPrompts(writer, 10_000).mcq_prompt(question("…"), range(4)).ids)
    for limit in range(bare - 6, bare + 40):
        asking = CausalExamPrompts(writer, limit)
        if limit < bare + 2:
            with pytest.raises(PromptTooLongError, match=f"超過 {limit} 個"):
                asking.mcq_prompt(asked, range(4))
        else:
            assert len(asking.mcq_prompt(asked, range(4)).ids) + 2 <= limit


def test_a_question_that_fits_is_written_whole(writer):
    prompt = CausalExamPrompts(writer, 500).mcq_prompt(question(), range(4))
    assert prompt.cut == 0 and "…" not in writer.tokenizer.decode(list(prompt.ids))


def test_places_of_the_template_inside_a_question_are_text(writer):
    asked = Question("天{options}地{stem}？", ("{letter}", "{text}"), 0)
    text = writer.tokenizer.decode(list(CausalExamPrompts(writer, 500).mcq_prompt(asked, range(2)).ids))
    assert "天{options}地{stem}？" in text and "A. {letter}" in text and "B. {text}" in text


def test_letters_that_a_vocabulary_joins_to_a_space_only_in_part_are_told_apart_all_the_same(llama_dir):
    """The tokenizer of the tests has ` A` to ` D` as tokens, and no ` E`."""
    tokenizer = load_tokenizer(llama_dir, "--model_path", "causal")
    prompts = CausalExamPrompts(Chat(tokenizer, "plain"), 256)
    for count in (4, 5, 10):
        ids = prompts.verbalizer_ids(count)
        assert len(set(ids)) == count
        question = Question("天？", tuple("地玄黃宇宙洪荒日月盈"[:count]), 0)
        asked = prompts.mcq_prompt(question, range(count)).ids
        for letter, token in zip("ABCDEFGHIJ", ids, strict=False):
            assert prompts.tokenizer.decode([*asked, token]).endswith(f"Assistant: {letter}")
