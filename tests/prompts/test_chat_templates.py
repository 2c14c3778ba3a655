"""Chat templates as models really have them: training and prompting write the same tokens, only answers are
trained on, and a model's words come out without what its template writes around them. Each template is
written here from scratch, after the form of the family that it is named for."""

import json

import pytest
import torch
from conftest import CHAT, CHATML, make_causal_dir

import fine_tuning_llm
import inference
from finetune.data.instructions import Instruction, parse_instruction
from finetune.data.question import Question
from finetune.models.streaming import through
from finetune.models.tokenizer import load_tokenizer
from finetune.objectives.causal_lm import InstructionObjective
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import Chat
from finetune.runtime.errors import UserError

IGNORING = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")
TAKING_TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# template, special tokens it needs, what a model says itself before its words
TEMPLATES = {
    "chatml": (CHATML, (), ""),
    "llama 2": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set messages = messages[1:] %}{% endif %}" + TAKING_TURNS + "{% for m in messages %}"
        "{% if m.role == 'user' %}{{ bos_token }}[INST] {% if loop.first and system %}<<SYS>>\n{{ system }}\n"
        "<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}",
        (),
        "",
    ),
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "",
    ),
    # the system's words stand before the last question, wherever that is
    "mistral": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}[INST] "
        "{% if system and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
        "{{ system }}\n\n{% endif %}{{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"),
        "",
    ),
    "gemma": (
        "{{ bos_token }}" + NO_SYSTEM + TAKING_TURNS + "{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "",
    ),
    "glm": (
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        "\n",
    ),
    "breeze": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %} [INST] {{ m.content }} [/INST] "
        "{% else %}{{ m.content | trim }}{% endif %}{% endfor %}",
        (),
        "",
    ),
    "phi": (PHI, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), ""),
    "zephyr": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n"
        "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}",
        (),
        "",
    ),
    "vicuna": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}"
        "USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        (),
        "",
    ),
    # thoughts of earlier turns are dropped, the last answer always has a place for them
    "qwen 3": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% set words = m.content.split('</think>')[-1].lstrip('\n') %}"
        "{% set thought = m.reasoning_content or '' %}{% if '</think>' in m.content %}"
        "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}"
        "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ words }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        (),
        "<think>\n\n</think>\n\n",
    ),
    # the thought begins in the prompt, and no answer that is written has one
    "deepseek": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
        ("<|User|>", "<|Assistant|>"),
        "\n</think>\n\n",
    ),
    "channels": (
        "{% for m in messages %}<|start|>{{ m.role }}"
        "{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
        "<|message|>{{ m.content }}{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>"),
        "<|channel|>final<|message|>",
    ),
    "ignoring": (IGNORING, (), ""),
    "ignoring, with an end after all": (IGNORING + "{{ eos_token }}", (), ""),
    "ignoring, in words": (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}{{ eos_token }}\n{% endfor %}",
        (),
        "",
    ),
}
IGNORE = {name for name in TEMPLATES if name.startswith("ignoring") or name == "vicuna"}

SYSTEM = {"role": "system", "content": "你是雲"}


def chat_of(folder, name) -> Chat:
    template, special, _ = TEMPLATES[name]
    tokenizer = load_tokenizer(folder, "--model_path", "causal")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|endoftext|>"
    tokenizer.chat_template = template
    return Chat(tokenizer, "chat")


@pytest.fixture(scope="module", params=TEMPLATES)
def named(request, qwen_dir):
    """A name of TEMPLATES, and its Chat."""
    return request.param, chat_of(qwen_dir, request.param)


def row_of(messages, name="x", **more) -> Instruction:
    return Instruction(tuple((one["role"], one["content"]) for one in messages), name, **more)


def answers(chat, messages, **more):
    """[(ids before, the targets after them)] of each answer, from the examples."""
    responses = InstructionObjective(CausalExamPrompts(chat, 500), [row_of(messages, **more)], 0)
    found = []
    for entry in responses.epoch(0):
        example = responses.example(*entry, 0)
        runs = []
        for at, token in zip(example.positions, example.targets, strict=True):
            if not runs or at != runs[-1][-1][0] + 1 or runs[-1][-1][1] == chat.end:
                runs.append([])
            runs[-1].append((at, token))
        for run in runs:
            found.append((list(example.ids[: run[0][0] + 1]), [token for _, token in run]))
    return found


@pytest.mark.parametrize("messages", [CHAT, [SYSTEM, *CHAT]], ids=["", "system"])
def test_each_answer_is_trained_on_after_the_very_tokens_it_is_prompted_with(named, messages):
    name, chat = named
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    found = answers(chat, messages)
    assert len(found) == len(turns)
    for at, (before, said) in zip(turns, found, strict=True):
        assert before == chat.prompt(messages[:at])
        assert said[-1] == chat.end and chat.end not in said[:-1]
        # and by the template alone
        plain = [{**message} for message in messages]
        if name == "gemma" and messages[0] == SYSTEM:
            plain = [{**messages[1], "content": f"你是雲\n\n{messages[1]['content']}"}, *plain[2:]]
            at -= 1
        if name not in IGNORE:
            asked = chat.tokenizer.apply_chat_template(plain[:at], add_generation_prompt=True, tokenize=False)
        else:
            whole = chat.tokenizer.apply_chat_template(plain[: at + 1], tokenize=False)
            asked = whole[: whole.rindex(plain[at]["content"])].rstrip(" ")
        assert chat.tokenizer.decode(before) == asked


def test_only_answers_and_their_ends_are_trained_on_and_come_out_bare(named):
    name, chat = named
    lead = TEMPLATES[name][2]
    words = [message["content"] for message in CHAT if message["role"] == "assistant"]
    for content, (_, said) in zip(words, answers(chat, CHAT), strict=True):
        written = chat.tokenizer.decode(said[:-1])
        assert written.strip(" ") == lead + content
        shown = chat.tokenizer.decode(said[:-1], skip_special_tokens=True)
        for pieces in ([shown], list(shown)):
            assert "".join(through(pieces, chat.start_cleaner())).strip() == content


def test_white_space_around_a_message_changes_neither_training_nor_prompts(named):
    _, chat = named
    padded = [{**one, "content": f"\n {one['content']} \n"} for one in CHAT]
    for at, (before, said) in zip((1, 3, 5), answers(chat, padded), strict=True):
        assert before == chat.prompt(padded[:at])
        shown = chat.tokenizer.decode(said[:-1], skip_special_tokens=True)
        assert "".join(through([shown], chat.start_cleaner())).strip() == CHAT[at]["content"]
    bare = [
        {**one, "content": one["content"].strip()} if one["role"] == "assistant" else one for one in padded
    ]
    assert chat.prompt(padded[:5]) == chat.prompt(bare[:5])


def test_a_letter_is_looked_for_where_a_conversation_has_it(named):
    _, chat = named
    question = Question("天地？", ("玄黃", "宇宙", "洪荒", "日月"), 2, id="q")
    asking = CausalExamPrompts(chat, 500)
    prompt = asking.mcq_prompt(question, range(4))
    messages = [
        *asking.writer.messages(question, range(4), question.stem),
        {"role": "assistant", "content": "C"},
    ]
    (whole,) = chat.conversation(messages)
    assert tuple(whole.ids[: len(prompt.ids)]) == prompt.ids
    assert whole.ids[len(prompt.ids)] == asking.verbalizer_ids(4)[2]


@pytest.mark.parametrize("name", ["chatml", "llama 3", "zephyr"])
def test_the_targets_are_what_transformers_marks_as_the_assistants(qwen_dir, name):
    chat = chat_of(qwen_dir, name)
    ids = [(before, said) for before, said in answers(chat, CHAT)]
    content = "m" if "m.content" in chat.template else "message"
    for end in ("<|im_end|>", "<|eot_id|>", "{{ eos_token }}"):
        for body in (f"{{{{ {content}.content }}}}{end}", f"{{{{ {content}.content | trim }}}}{end}"):
            marked = f"{{% if {content}.role == 'assistant' %}}{{% generation %}}{body}{{% endgeneration %}}"
            chat.tokenizer.chat_template = chat.tokenizer.chat_template.replace(
                body, f"{marked}{{% else %}}{body}{{% endif %}}"
            )
    assert "generation %}" in chat.tokenizer.chat_template.replace("add_generation", "")
    found = chat.tokenizer.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [token for token, mine in zip(found["input_ids"], found["assistant_masks"], strict=True) if mine]
    assert [token for _, said in ids for token in said] == marked


@pytest.mark.parametrize("name", ["glm", "breeze"])
def test_an_end_that_is_not_written_is_a_target_without_standing_in_the_history(qwen_dir, name):
    chat = chat_of(qwen_dir, name)
    responses = InstructionObjective(CausalExamPrompts(chat, 500), [row_of(CHAT)], 0)
    examples = [responses.example(*entry, 0) for entry in responses.epoch(0)]
    # one row of the model's holds them all, unless a word and what follows it are one token
    assert len(examples) < 3 and (name == "breeze" or len(examples) == 1)
    assert not any(chat.end in example.ids[:-1] for example in examples)
    assert sum(example.targets.count(chat.end) for example in examples) == 3
    assert all(said[-1] == chat.tokenizer.eos_token_id for _, said in answers(chat, CHAT))


def test_bos_stands_once_where_template_and_tokenizer_both_write_it(qwen_dir):
    from tokenizers.processors import TemplateProcessing

    chat = chat_of(qwen_dir, "llama 3")
    start = chat.tokenizer.bos_token_id
    chat.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    assert chat.prompt(CHAT[:3]).count(start) == 1
    assert chat.conversation(CHAT)[0].ids.count(start) == 1


# ---- what a template has no place for ----------------------------------------------------------------------


def test_a_system_message_that_a_template_refuses_or_drops_goes_into_the_user_turn_and_is_counted(qwen_dir):
    for template in (NO_SYSTEM + CHATML, CHATML.replace("<|im_start|>{{", "{% if message.role != 'system' %}"
                     "<|im_start|>{{", 1).replace("<|im_end|>\n", "<|im_end|>\n{% endif %}", 1)):  # fmt: skip
        tokenizer = load_tokenizer(qwen_dir, "--model_path", "causal")
        tokenizer.chat_template = template
        chat = Chat(tokenizer, "chat")
        assert tokenizer.decode(chat.prompt([SYSTEM, CHAT[0]])) == (
            "<|im_start|>user\n你是雲\n\n天地玄黃？<|im_end|>\n<|im_start|>assistant\n"
        )
        assert chat.conversation([SYSTEM, *CHAT])[0].ids[:4] == chat.prompt([SYSTEM, CHAT[0]])[:4]
        rows = [Instruction((("system", "甲"), ("user", "天"), ("assistant", "地")))] * 2
        remarks = InstructionObjective(
            CausalExamPrompts(chat, 99), [*rows, Instruction(rows[0].turns[1:])], 0
        ).remarks
        assert [(count, "system" in text) for text, count in remarks.items()] == [(2, True)]


def test_a_greeting_is_context_or_where_the_template_forbids_it_left_out_and_counted(qwen_dir):
    row = parse_instruction({"messages": [{"role": "assistant", "content": "您好"}, *CHAT]})
    for name, shown in (("chatml", True), ("gemma", False), ("llama 2", False), ("llama 3", True)):
        chat = chat_of(qwen_dir, name)
        responses = InstructionObjective(CausalExamPrompts(chat, 500), [row], 0)
        example = responses.example("reply", 0, 0)
        assert ("您好" in chat.tokenizer.decode(list(example.ids))) == shown
        assert "您好" not in chat.tokenizer.decode(list(example.targets))
        assert bool(responses.remarks) != shown


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "<think>"])
def test_a_thought_is_trained_on_where_the_template_can_write_it_and_counted_where_not(qwen_dir, key):
    said = {"role": "assistant", "content": "宇宙"} | ({key: "想一想"} if key[0] != "<" else {})
    if key == "<think>":
        said["content"] = "<think>\n想一想\n</think>\n\n宇宙"
    row = parse_instruction({"messages": [CHAT[0], said]})
    whole = "<think>\n想一想\n</think>\n\n宇宙"
    for name, wanted in (
        ("qwen 3", whole),
        ("deepseek", whole.removeprefix("<think>\n")),
        ("chatml", "宇宙"),
    ):
        chat = chat_of(qwen_dir, name)
        responses = InstructionObjective(CausalExamPrompts(chat, 500), [row], 0)
        targets = chat.tokenizer.decode(list(responses.example("reply", 0, 0).targets[:-1]))
        if name == "chatml" and key == "<think>":  # words like any
            wanted = whole
        assert targets == wanted
        assert bool(responses.remarks) == (wanted == "宇宙")
        if name != "chatml":
            assert (
                "".join(through(list(targets), chat.start_cleaner())).strip() == whole
            )  # a thought stays whole
            asked = [CHAT[0], {"role": "assistant", "content": whole}, CHAT[2]]
            assert "想一想" not in chat.tokenizer.decode(chat.prompt(asked))  # as its template has it


def test_every_answer_of_a_template_that_drops_earlier_thoughts_is_trained_on_and_the_rows_are_counted(
    qwen_dir,
):
    chat = chat_of(qwen_dir, "qwen 3")
    row = row_of(CHAT)
    responses = InstructionObjective(CausalExamPrompts(chat, 500), [row, Instruction(row.turns[:2])], 0)
    assert len(responses.rows) == 2 and len(responses.epoch(0)) == 4
    assert [count for text, count in responses.remarks.items() if "改寫" in text] == [1]
    assert [responses.example(*entry, 0).row for entry in responses.epoch(0)] == ["x", "x", "x", ""]


# ---- answers that are context ------------------------------------------------------------------------------


def test_an_answer_that_is_not_to_be_trained_on_is_context_in_every_template(named):
    _, chat = named
    found = answers(chat, CHAT, untaught=(1, 3))
    assert len(found) == 1 and found[0][0] == chat.prompt(CHAT[:5])
    assert found[0] == answers(chat, CHAT)[2]


def test_train_on_prompt_never_trains_on_an_answer_that_is_marked_as_context(qwen_dir):
    chat = chat_of(qwen_dir, "chatml")
    rows = [row_of(CHAT, "a", untaught=(1,)), row_of(CHAT, "b")]
    responses = InstructionObjective(CausalExamPrompts(chat, 500), rows, 0, on_prompt=True)
    first, second = (responses.example(*entry, 0) for entry in responses.epoch(0))
    assert "宇宙洪荒" not in chat.tokenizer.decode(list(first.targets))
    assert second.targets == second.ids[1:]
    assert list(responses.remarks.values()) == [1]


def test_a_long_chat_keeps_the_answers_that_fit(qwen_dir):
    chat = chat_of(qwen_dir, "chatml")
    whole = InstructionObjective(CausalExamPrompts(chat, 500), [row_of(CHAT)], 0).example("reply", 0, 0)
    second = len(chat.prompt(CHAT[:3]))
    short = InstructionObjective(CausalExamPrompts(chat, second - 1), [row_of(CHAT)], 0)
    assert short.truncated == 1 and not short.too_long
    example = short.example("reply", 0, 0)
    assert example.ids == whole.ids[: second - 1] and example.targets == whole.targets[: len(example.targets)]
    assert (
        chat.tokenizer.decode(list(example.targets[:-1])) == "宇宙洪荒。" and example.targets[-1] == chat.end
    )


# ---- templates as files ------------------------------------------------------------------------------------


def test_a_template_among_several_is_default_or_the_only_one_or_asked_for(qwen_dir):
    tokenizer = load_tokenizer(qwen_dir, "--model_path", "causal")
    wanted = Chat(tokenizer, "chat").prompt(CHAT[:1])
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ 1 / 0 }}"}
    assert Chat(tokenizer, "chat").prompt(CHAT[:1]) == wanted
    tokenizer.chat_template = {"rag": CHATML}
    assert Chat(tokenizer, "chat").prompt(CHAT[:1]) == wanted
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(UserError, match="rag、tool_use"):
        Chat(tokenizer, "chat")


def test_templates_are_read_from_their_own_files(qwen_dir, tmp_path):
    tokenizer = load_tokenizer(qwen_dir, "--model_path", "causal")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(PHI)
    (tmp_path / "additional_chat_templates").mkdir(exist_ok=True)
    (tmp_path / "additional_chat_templates/rag.jinja").write_text("{{ 1 / 0 }}")
    chat = Chat(load_tokenizer(tmp_path, "--model_path", "causal"), "chat")
    assert chat.tokenizer.decode(chat.prompt(CHAT[:1])) == "<|user|>\n天地玄黃？<|end|>\n<|assistant|>\n"


def test_what_is_odd_about_a_template_is_said(qwen_dir):
    tokenizer = load_tokenizer(qwen_dir, "--model_path", "causal")

    def notes(template) -> str:
        tokenizer.chat_template = template
        return "".join(Chat(tokenizer, "chat").notes())

    assert notes(CHATML) == ""
    assert notes(
        "{% if messages[0].role != 'system' %}{{ raise_exception('A system, please') }}{% endif %}" + CHATML
    ) == ""  # fmt: skip
    assert "日期" in notes("{{ strftime_now('%d %b %Y') }}" + CHATML)
    assert "add_generation_prompt" in notes(IGNORING)
    assert "後者" in notes(CHATML.replace("<|im_start|>assistant\n{% endif %}", "Assistant: {% endif %}"))
    for broken in ("{{ 1 / 0 }}", "{% for message in messages[:1] %}{{ message.content }}{% endfor %}"):
        tokenizer.chat_template = broken
        with pytest.raises(UserError, match="一問一答也寫不出來"):
            Chat(tokenizer, "chat").notes()


# ---- from end to end ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained on one answer by the real script; its template takes no notice of
    add_generation_prompt."""
    folder = tmp_path_factory.mktemp("ignoring")
    base = make_causal_dir(folder / "base")
    (base / "chat_template.jinja").write_text(IGNORING)
    row = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "房間很好。"}]}
    (folder / "rows.json").write_text(json.dumps([row] * 2))
    words = ["--task", "sft", "--model_name_or_path", base, "--dataset", folder / "rows.json", "--cpu"]
    words += ["--max_steps", "40", "--num_epochs", "40", "--learning_rate", "2e-2", "--split_ratio", "1,0,0"]
    words += ["--save_dir", folder / "ck", "--output_dir", folder / "model"]
    torch.manual_seed(0)
    assert fine_tuning_llm.main([*map(str, words)]) == 0
    return folder / "model"


@pytest.mark.slow
def test_a_model_whose_template_opens_no_turn_answers_bare_wherever_it_is_prompted(
    trained, tmp_path, capsys, monkeypatch
):
    from io import StringIO

    model = ["--model_path", str(trained), "--cpu", "--max_new_tokens", "12"]

    def out(*words) -> str:
        capsys.readouterr()
        assert inference.main([*model, *map(str, words)]) == 0
        return capsys.readouterr().out

    assert out("--prompt", "你好").endswith("回答: 房間很好。\n")
    assert json.loads(out("--prompt", "你好", "--json"))["response"] == "房間很好。"
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "你好"}\n{"messages": [{"role": "user", "content": "你好"}]}'
    )
    out("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["response"] for line in lines] == ["房間很好。"] * 2
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("sys.stdin", StringIO("你好\n"))
    assert "🤖 房間很好。\n" in out()
    assert inference.generate_text(*inference.load_model(trained, "cpu")[:2], ["你好"], "cpu") == [
        "房間很好。"
    ]
