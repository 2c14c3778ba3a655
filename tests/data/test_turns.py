"""Rows of chats as people really have them: who speaks, what is context, what is counted, what is refused."""

import json

import pytest
from conftest import write_rows

from finetune.data.instructions import parse_instruction, read_instructions
from finetune.data.splits import split_instructions
from finetune.data.turns import UnusableRowError
from finetune.runtime.errors import UserError

U, A = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "嗨"}
HELLO = (("user", "你好"), ("assistant", "嗨"))
CHAT = {"messages": [U, A]}
PAIR = {"instruction": "你好", "output": "嗨"}


def read(row, **more):
    """(turns, places of answers that are context, remarks)"""
    remarks: set[str] = set()
    found = parse_instruction(row, remarks=remarks, **more)
    return found.turns, found.untaught, remarks


# ---- the same conversation, in the layouts there are -------------------------------------------------------

TREE = {
    "text": "你好", "role": "prompter",
    "replies": [
        {"text": "差", "role": "assistant", "rank": 1}, {"text": "嗨", "role": "assistant", "rank": 0},
    ],
}  # fmt: skip
PLAIN = {
    "json in a cell": {"messages": json.dumps([U, A])},
    "a list as python writes it": {"messages": str([U, A])},
    "messages: null": {**PAIR, "messages": None},
    "an empty cell": {**PAIR, "messages": "", "conversations": "[]"},
    "not a number": {**PAIR, "messages": float("nan")},
    "instruction: null": {**CHAT, "instruction": None, "output": None},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "你"}, "好"]}, A]},
    "no tools": {**CHAT, "tools": "[]", "images": None},
    "prompt and completion": {"prompt": "你好", "completion": "嗨"},
    "prompt and response": {"prompt": "你好", "response": "嗨"},
    "capitals": {"Instruction": "你好", "Response": "嗨"},
    "lists of messages": {"prompt": [U], "completion": [A]},
    "lists of messages in cells": {"prompt": json.dumps([U]), "completion": json.dumps([A])},
    "an answer that repeats the prompt": {"prompt": [U], "completion": [U, A]},
    "question and answer": {"question": "你好", "answer": "嗨"},
    "in Chinese": {"指令": "你好", "輸出": "嗨"},
    "a file of lists": [U, A],
    "pairs": {"conversations": [["你好", "嗨"]]},
    "a list for each key": {"conversations": {"from": ["human", "gpt"], "value": ["你好", "嗨"]}},
    "who: text": {"conversation": [{"human": "你好", "assistant": "嗨"}]},
    "weights of one": {"messages": [U, {**A, "weight": 1}]},
    "weights that are null": {"messages": [{**U, "weight": None}, {**A, "weight": 1.0, "train": "true"}]},
}
ROLES = [
    ("human", "gpt"), ("user", "bot"), ("user", "model"), ("User", "Assistant"), ("prompter", "assistant"),
    ("user_input", "chatgpt"), ("使用者", "助理"),
]  # fmt: skip
for asks, says in ROLES:
    for who, said in (("from", "value"), ("role", "text"), ("role", "content")):
        PLAIN[f"{who} {asks}, {said}"] = {
            "conversations": [{who: asks, said: "你好"}, {who: says, said: "嗨"}]
        }


@pytest.mark.parametrize("row", PLAIN.values(), ids=PLAIN)
def test_every_layout_of_a_conversation_is_read_alike(row):
    assert read(row) == (HELLO, (), set())
    asked = parse_instruction(row, need_answer=False)
    assert asked.turns == HELLO[:1]  # and so is what is to be answered


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize("row", [CHAT, PAIR, {"conversations": [U, A]}, {"prompt": [U], "completion": [A]}])
def test_a_system_beside_the_conversation_comes_first(row, name):
    assert read({**row, name: "你是客服"})[0] == (("system", "你是客服"), *HELLO)
    once = {"messages": [{"role": "system", "content": "你是客服"}, U, A], name: "你是客服"}
    assert read(once)[0] == (("system", "你是客服"), *HELLO)


@pytest.mark.parametrize(
    "history", [[["一", "二"]], [{"role": "user", "content": "一"}, {**A, "content": "二"}]]
)
def test_a_history_stands_before_the_instruction_also_as_json(history):
    wanted = (("user", "一"), ("assistant", "二"), *HELLO)
    assert read({**PAIR, "history": history})[0] == wanted
    assert read({**PAIR, "history": json.dumps(history)})[0] == wanted


def test_what_was_thought_is_kept_apart_from_what_was_said():
    for row in (
        {"messages": [U, {**A, "reasoning_content": "想"}]},
        {"messages": [U, {"role": "assistant", "thinking": "想", "content": "嗨"}]},
        {"messages": [U, {**A, "content": [{"type": "thinking", "thinking": "想"}, "嗨"]}]},
        {"Question": "你好", "Complex_CoT": "想", "Response": "嗨"},
    ):  # fmt: skip
        found = parse_instruction(row)
        assert (found.turns, found.thoughts) == (HELLO, ((1, "想"),))
        assert found.messages[1] == {**A, "reasoning_content": "想"}


# ---- what is context, left out, or read in a way that is told ----------------------------------------------

BAD = {"role": "assistant", "content": "不要學"}
TOLD = {
    "weight 0": ({"messages": [U, {**BAD, "weight": 0}, U, A]}, 4, (1,), "標了不訓練（weight）"),
    "weight in a csv": ({"messages": [U, {**BAD, "weight": "0.0"}, U, A]}, 4, (1,), "標了不訓練（weight）"),
    "train": ({"messages": [U, {**BAD, "train": False}, U, A]}, 4, (1,), "標了不訓練（train）"),
    "loss": ({"messages": [U, {**BAD, "loss": False}, U, A]}, 4, (1,), "標了不訓練（loss）"),
    "mask": ({"messages": [U, {**BAD, "mask": True}, U, A]}, 4, (1,), "標了不訓練（mask）"),
    "weight 0 at the end": ({"messages": [U, A, U, {**BAD, "weight": 0}]}, 2, (), "標了不訓練"),
    "a user to be trained on": ({"messages": [{**U, "train": True}, A]}, 2, (), "只訓練回答"),
    "a greeting": ({"messages": [A, U, A]}, 3, (0,), "招呼"),
    "a question last": ({"messages": [U, A, U]}, 2, (), "最後的話沒有回答"),
    "an empty answer": ({"messages": [U, {**A, "content": " "}, U, A]}, 4, (1,), "空的回答"),
    "an answer of null": ({"messages": [U, {**A, "content": None}, U, A]}, 4, (1,), "空的回答"),
    "an empty answer last": ({"messages": [U, A, U, {**A, "content": ""}]}, 2, (), "最後的話沒有回答"),
    "developer": ({"messages": [{"role": "developer", "content": "甲"}, U, A]}, 3, (), "developer"),
    "twice in a row": ({"messages": [U, U, A]}, 2, (), "併成一則"),
    "tools": ({**CHAT, "tools": [{"type": "function"}]}, 2, (), "tools"),
    "chosen": ({"prompt": "你好", "chosen": "嗨", "rejected": "不"}, 2, (), "rejected"),
    "chosen beside a chat": ({"conversations": [U], "chosen": A, "rejected": BAD}, 2, (), "rejected"),
    "an empty question": ({"messages": [{**U, "content": ""}, A, U, A]}, 4, (), "是空的"),
    "chosen, whole chats": ({"chosen": [U, A], "rejected": [U, BAD]}, 2, (), "rejected"),
    "a tree": ({"prompt": TREE}, 2, (), "排名最前"),
    "two answers": ({**PAIR, "answer": "不"}, 2, (), "不看 answer"),
    "two questions": ({**PAIR, "query": "不"}, 2, (), "不看 query"),
    "context": ({"question": "你好", "context": "文", "answer": "嗨"}, 2, (), "接在 question 後面"),
    "a row's own weight": ({**CHAT, "weight": 0.3}, 2, (), "整列的 weight"),
}


@pytest.mark.parametrize(("row", "count", "untaught", "told"), TOLD.values(), ids=TOLD)
def test_what_is_read_otherwise_than_it_stands_is_reported(row, count, untaught, told):
    turns, context, remarks = read(row)
    assert (len(turns), context) == (count, untaught) and turns[-1] == HELLO[1]
    (remark,) = remarks
    assert told in remark


LEFT_OUT = [
    ({"messages": [U, {**A, "weight": 0}]}, "標了不訓練的列"),
    ({"messages": [A, U, {**BAD, "train": False}]}, "標了不訓練的列"),
    ({**CHAT, "weight": 0}, "weight 是 0"),
    ({"prompt": "你好", "completion": "嗨", "label": False}, "label 是 false"),
    ({**CHAT, "label": False}, "label 是 false"),
    ({**CHAT, "mask": "Assistant"}, "mask"),
]


@pytest.mark.parametrize(("row", "reason"), LEFT_OUT)
def test_a_row_marked_not_to_be_trained_on_is_left_out_and_still_can_be_answered(row, reason):
    with pytest.raises(UnusableRowError, match=reason):
        parse_instruction(row)
    assert parse_instruction(row, need_answer=False).turns[-1] == ("user", "你好")


REFUSED = {
    "a tool's turn": ({"messages": [U, {"role": "tool", "content": "晴"}, A]}, "工具的訊息（角色 'tool'"),
    "function": ({"conversations": [{"from": "function", "value": "x"}, U, A]}, "工具的訊息（角色 'fun"),
    "observation": ({"conversations": [U, {"from": "Observation", "value": "x"}, A]}, "工具的訊息"),
    "a call": ({"messages": [U, {**A, "tool_calls": [{"id": 1}]}, A]}, "呼叫了工具（tool_calls"),
    "an image": ({"messages": [{**U, "content": [{"type": "image_url"}]}, A]}, "'image_url'"),
    "images beside": ({**CHAT, "images": ["a.png"]}, "images"),
    "half a weight": ({"messages": [U, {**A, "weight": 0.5}]}, "weight 是 0.5"),
    "a mask of 1": ({"messages": [U, {**A, "mask": 1}]}, "看不出是不訓練還是要訓練"),
    "part of an answer": ({"messages": [U, {**A, "train_detail": [{"begin_offset": 0}]}]}, "train_detail"),
    "a torn cell": ({"messages": '[{"role": "user"'}, "讀不出來"),
    "no prompt": ({"chosen": "嗨", "rejected": "不"}, "chosen 要有 prompt"),
    "a message alone": ({"role": "user", "content": "你好"}, "一列只有一則訊息"),
    "a tree in rows": ({"message_id": "1", "parent_id": None, "role": "prompter", "text": "天"}, "一則訊息"),
    "options": ({"prompt": "1+1", "A": "1", "B": "2", "answer": "B"}, "選擇題要有 question"),
    "a role that is no text": ({"messages": [{"role": {"x": 1}, "content": "天"}, A]}, "不認得角色"),
    "lists of unlike length": ({"messages": {"role": ["user"], "content": []}}, "不一樣長"),
    "nobody": ({"messages": [{"content": "你好"}, A]}, "沒有 role"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_on_as_it_is_meant_is_refused_by_name(row, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        parse_instruction(row)
    assert not isinstance(refused.value, UnusableRowError)


def test_a_file_says_in_one_counted_line_each_how_it_was_read(tmp_path, train, qwen_dir, capsys):
    rows = [
        {"messages": [A, U, A]}, {"messages": [A, U, {**A, "content": "好"}]},
        {"messages": [U, {**A, "weight": 0}]}, {**PAIR, "messages": None},
        {"messages": [U, {**A, "reasoning_content": "想"}]},
        {"messages": [U, {"role": "tool", "content": "晴"}, A]},
    ]  # fmt: skip
    source = write_rows(tmp_path / "rows.jsonl", rows)
    words = ["--task", "sft", "--model_name_or_path", qwen_dir, "--dataset", source, "--cpu", "--dry_run"]
    assert train(*words, base=False) == 2
    err = capsys.readouterr().err
    assert f"{source}:6：有工具的訊息（角色 'tool'）" in err and "共 1 列有問題" in err
    words += ["--on_bad_rows", "skip", "--split_ratio", "1,0,0"]
    assert train(*words, base=False) == 0
    err = capsys.readouterr().err
    assert "4 列，略過 1 列" in err and "招呼）只當上文，不訓練（2 列）" in err
    assert "每一則回答都標了不訓練的列不用於訓練（1 列）" in err
    assert "訓練：對話樣板沒有思考（reasoning_content）的位置：不訓練思考，只訓練回答（1 列）" in err


def test_a_file_in_which_nothing_is_to_be_trained_on_is_refused_with_the_reason(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", [{"messages": [U, {**A, "weight": 0}]}] * 3)
    with pytest.raises(UserError, match="標了不訓練的列不用於訓練（3 列）"):
        read_instructions(str(source))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_conversations_in_the_cells_of_a_table_are_conversations(tmp_path, suffix):
    rows = [{"id": "1", "messages": json.dumps([U, A], ensure_ascii=False), "system": "甲"}]
    (found,) = read_instructions(str(write_rows(tmp_path / f"rows{suffix}", rows))).rows
    assert found.turns == (("system", "甲"), *HELLO) and found.id == "1"


def test_the_same_chat_with_other_weights_counts_once_and_no_reply_to_train_on_is_lost():
    messages = [U, A, {**U, "content": "在嗎"}, {**A, "content": "在"}]
    quiet = parse_instruction({"messages": [U, {**A, "weight": 0}, *messages[2:]]})
    loud = parse_instruction({"messages": messages})
    for rows in ([quiet, loud], [loud, quiet]):
        (kept,) = split_instructions(rows, (1, 0, 0), 0)[0]
        assert kept.untaught == ()
    (kept,) = split_instructions([quiet, quiet], (1, 0, 0), 0)[0]
    assert kept.untaught == (1,)


def test_questions_with_options_stay_an_exam_whatever_stands_beside_them(tmp_path):
    from finetune.data.exam import Exam

    row = {"question": "天？", "A": "地", "B": "玄", "answer": "B"}
    for more in ({}, {"messages": None}, {"instruction": ""}, {"instruction": "請作答"}):
        assert isinstance(
            read_instructions(str(write_rows(tmp_path / "rows.jsonl", [{**more, **row}]))), Exam
        )
    both = {**row, "messages": [U, A]}
    assert read_instructions(str(write_rows(tmp_path / "both.jsonl", [both]))).rows[0].turns == HELLO


def test_a_file_to_be_answered_is_read_as_it_is_for_training_and_says_so(
    tmp_path, qwen_dir, capsys, monkeypatch
):
    import inference
    from finetune.models.streaming import Reply
    from finetune.predict.causal import CausalLMPredictor

    asked = []
    monkeypatch.setattr(
        CausalLMPredictor,
        "generate",
        lambda self, prompts, *_: asked.extend(prompts) or [Reply("好")] * len(prompts),
    )
    rows = [
        {"prompt": "你好"}, {"prompt": "你好", "system": "甲"}, {"prompt": [U], "completion": [A]},
        {"messages": None, "instruction": "你好"}, {"messages": [A, U]}, {"question": "你好", "answer": "嗨"},
        {**CHAT, "tools": [{"type": "function"}]}, {"messages": [U, {"role": "tool", "content": "晴"}, U]},
    ]  # fmt: skip
    source = write_rows(tmp_path / "in.jsonl", rows)
    output = tmp_path / "out.jsonl"
    words = ["--model_path", qwen_dir, "--cpu", "--input", source, "--output", output]
    assert inference.main([*map(str, words)]) == 0
    told = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["error"] is None for row in told] == [True] * 7 + [False] and "'tool'" in told[7]["error"]
    err = capsys.readouterr().err
    assert "招呼）只當上文，不訓練（1 列）" in err and "tools（工具的說明）不放進提示（1 列）" in err
    tokenizer = inference.load_model(qwen_dir, "cpu")[1]
    texts = [tokenizer.decode(ids) for ids in asked]
    plain = "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert texts[0] == texts[2] == texts[3] == texts[5] == texts[6] == plain
    assert texts[1] == f"<|im_start|>system\n甲<|im_end|>\n{plain}"
    assert texts[4] == f"<|im_start|>assistant\n嗨<|im_end|>\n{plain}"
