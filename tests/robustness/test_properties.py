"""Whatever is generated, the answer is a value or a UserError: never another exception, never two messages.

The inputs are drawn the same way each time, so that a failure stays one; MANY=10 in the environment draws ten
times as many, and other ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import tempfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fine_tuning_llm
import inference
from finetune.cli import config_file, inference_checks, train_args
from finetune.data import corpus as text_corpus
from finetune.data import label_columns, option_syntax
from finetune.data.bad_rows import Unreadable
from finetune.data.cleaning import Cleaning
from finetune.data.exam import read_exam
from finetune.data.instructions import parse_instruction, read_instructions
from finetune.data.labelled import read_labelled
from finetune.data.question import Question
from finetune.data.question_rows import parse_question
from finetune.data.tables import read_table
from finetune.predict.repl import FillMaskRepl
from finetune.runtime import errors, manifest, strict_json
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import READABLE
from finetune.training import deepspeed_config

MANY = int(os.environ.get("MANY", "1"))
DRAWN = {  # inputs of each property; MANY=2 and more draws others, `make nightly` ten times as many
    "question": 900, "instruction": 800, "label": 600, "json": 1000, "table": 1200, "data": 400,
    "flags": 900, "main": 400, "config": 800, "options": 1000, "terminal": 800, "card": 300,
    "manifest": 200, "deepspeed": 800,
}  # fmt: skip


def drawn(name: str):
    return settings(
        max_examples=DRAWN[name] * MANY, derandomize=MANY == 1, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# ---- what is drawn -----------------------------------------------------------------------------------------

ODD = [
    "", " ", "\0", "天", "A", "NA", "nan", "１", "²", "-1", "1e999", "\ud800", "\udcff", "\x1b[2J",
    "\u202e", "auto",
    "9" * 4400, "天" * 300, "{}", "[MASK]", "A:地 B:玄", "=1+1", "\ufeff", "a\nb", "{x}", "%s",
]  # fmt: skip
words = st.sampled_from(ODD) | st.text(max_size=12)
numbers = st.sampled_from([0, 1, -1, True, False, 2**31, 2**63, 10**4200, math.nan, math.inf, -math.inf, 1.5])
leaves = st.none() | numbers | st.integers() | st.floats() | words
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)


def rows_with(*names: str):
    """Rows with some of these label_columns, and with others."""
    known = st.dictionaries(st.sampled_from(names), values, max_size=len(names))
    return st.builds(lambda a, b: {**a, **b}, st.dictionaries(words, values, max_size=2), known) | values


QUESTIONS = (
    "question", "A", "B", "C", "K", "answer", "choices", "options", "id", "subject", "文章", "問題",
    "選項1", "選項2",
    "option1", "Option 2", "正確答案",
)  # fmt: skip
INSTRUCTIONS = (
    "instruction", "input", "output", "system", "history", "messages", "conversations", "id", "ID", "text",
    "role", "content",
)  # fmt: skip
messages = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "from", "content", "value"]),
        st.sampled_from(["user", "gpt", "system"]) | values,
    ),
    max_size=4,
)
CONTENTS = [
    b'question,A,B,answer\n\xe5\xa4\xa9,1,2,A\n"\xe5\x9c\xb0","3,4",5,B\n',
    b"text\tlabel\n\xe5\xa4\xa9\xe5\x9c\xb0\tx\n\xe7\x8e\x84\ty\n",
    b'[{"question": "q", "A": "1", "B": "2", "answer": "A"}, {"text": "\\u5929", "label": [1.5]}]',
    b'{"data": [{"instruction": "a", "output": "b"}], "n": 1}',
    b'{"text": "\\ud83d\\ude00", "label": "x"}\n{"messages": [{"role": "user", "content": "a"}]}\n',
    b"instruction,output\n1,2\n\n3,4\n",
]
PIECES = [
    b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b"\\ud800",
    b"\\u", b"NaN", b"1e999",
    b"9" * 4400, b"[" * 70, b'{"a":' * 70, b'"a":1,"a":2,', b"\xe5\xa4", b"\t", b"''", b"PAR1",
    b"null", b"true,",
]  # fmt: skip


@st.composite
def contents(draw) -> bytes:
    """A file of some kind with pieces put in, taken out, doubled; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    whole = draw(st.sampled_from([*CONTENTS, PARQUET]))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(whole)))
        end = min(len(whole), at + draw(st.sampled_from([0, 0, 1, 3, 20])))
        whole = whole[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=3)) + whole[end:]
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 3)) == 0 else whole


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": "天", "A": "1", "B": "2", "answer": "A", "text": "地", "label": 1}] * 2
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


PARQUET = _parquet()


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def fine(call, *arguments, raises=UserError):
    """Result of a call; None for the error that it may raise, which says in words what is wrong."""
    try:
        return call(*arguments)
    except raises as error:
        assert str(error) or raises is not UserError
        return None


# ---- rows --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(rows_with(*QUESTIONS), st.booleans())
@drawn("question")
@example({"question": "天", "A": "1", "B": "2", "answer": 10**4200}, True)
@example({"選項1": "天", "問題": "地", "選項2": "玄", "正確答案": "²"}, True)
@example({"question": math.nan, "choices": [math.nan, 1]}, False)
def test_any_row_is_a_question_or_a_reason_why_not(row, needed):
    asked = fine(lambda: parse_question(row, need_answer=needed), raises=ValueError)
    if asked is not None:
        assert isinstance(asked, Question) and asked.stem.strip() and 2 <= len(asked.options) <= 10
        assert asked.answer is None or 0 <= asked.answer < len(asked.options)
        assert not needed or asked.answer is not None


@pytest.mark.slow
@given(
    rows_with(*INSTRUCTIONS)
    | st.builds(lambda m: {"messages": m}, messages)
    | st.builds(dict, history=messages),
    st.booleans(),
)
@drawn("instruction")
@example({"messages": [{"role": ["user"], "content": "x"}]}, True)
@example({"instruction": "x", "history": [[10**4200, {}]], "output": "y"}, True)
def test_any_row_is_an_instruction_or_a_reason_why_not(row, needed):
    read = fine(lambda: parse_instruction(row, need_answer=needed), raises=ValueError)
    if read is not None:
        assert all(isinstance(role, str) and isinstance(content, str) for role, content in read.turns)
        assert read.turns[-1][0] == ("assistant" if needed else "user")


@pytest.mark.slow
@given(
    rows_with("text", "pair", "label", "other"),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(), ("x", "y")]),
)
@drawn("label")
@example({"text": "天", "label": math.inf}, False, False, ())
@example({"text": "天", "label": [math.nan]}, True, False, ())
@example({"text": "天", "label": 10**4200}, False, False, ())
def test_any_row_is_a_labelled_text_or_a_reason_why_not(row, multi, pair, classes):
    wanted = label_columns.LabelColumns(("text", "pair")[: 1 + pair], ("label", "other")[: 1 + multi], multi)
    read = fine(label_columns.parse_row, row, wanted, classes, raises=ValueError)
    if read is not None:
        texts, labels = read
        assert all(isinstance(one, str) and one.strip() for one in [*texts, *labels])


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.builds(lambda raw: raw.decode("utf-8", "replace"), contents()) | st.builds(json.dumps, values))
@drawn("json")
def test_json_is_read_as_python_reads_it_or_refused_with_a_reason(text):
    value = fine(strict_json.decode, text, raises=strict_json.JsonError)
    if value is not None:
        assert json.dumps(value) == json.dumps(json.loads(text, parse_constant=lambda name: None))


@pytest.mark.slow
@given(contents(), st.sampled_from([*READABLE, ".txt", ".csv.gz"]))
@drawn("table")
def test_any_bytes_are_rows_or_reasons_with_their_line(room, raw, suffix):
    file = room / f"t{suffix}"
    file.write_bytes(raw)
    for rows in (text_corpus._txt_rows(file), read_table(file)) if suffix == ".txt" else (read_table(file),):
        for line, row in fine(lambda: list(rows)) or ():  # noqa: B023
            assert isinstance(line, int) and line >= 0
            if isinstance(row, Unreadable):
                assert 0 < len(row) < 3000
            elif isinstance(row, dict) and suffix != ".parquet" and not raw.startswith(b"PAR1"):
                json.dumps(row, ensure_ascii=False).encode()  # no half characters
    assert file.read_bytes() == raw


@pytest.mark.slow
@given(contents(), st.sampled_from([*READABLE, ".txt"]), st.sampled_from(["fail", "skip"]))
@drawn("data")
def test_any_file_of_data_is_read_by_every_task_or_refused(room, raw, suffix, on_bad_rows):
    file = room / f"d{suffix}"
    file.write_bytes(raw)
    with contextlib.redirect_stderr(io.StringIO()):
        fine(lambda: read_exam(str(file), on_bad_rows=on_bad_rows))
        fine(lambda: read_instructions(str(file), on_bad_rows=on_bad_rows))
        fine(lambda: read_corpus_of(str(file), on_bad_rows))
        fine(lambda: read_labelled(str(file), on_bad_rows=on_bad_rows))


def read_corpus_of(file: str, on_bad_rows: str):
    return text_corpus.read_corpus(file, Cleaning(min_chars=0), on_bad_rows=on_bad_rows)


# ---- flags -------------------------------------------------------------------------------------------------


def names_of(parser) -> list[str]:
    return sorted({name for action in parser._actions for name in action.option_strings} - {"-h", "--help"})


NAMES = {module: names_of(module.build_parser()) for module in (train_args, inference_checks)}
flag_values = words | st.builds(str, numbers.filter(lambda n: n != 10**4200)) | st.sampled_from(
    ["exam", "mlm", "sft", "demo", "0.7,0.2,0.1", "nan,nan,nan", "inf,-inf,1", "all", "none",
    "fp16", "letter",
     "~nobody/x", "x" * 300, "/dev/null", "-5", "--", "--seed", "@file", "1_000", "0x10", "٣"]
)  # fmt: skip


def argv_of(module):
    name = st.sampled_from(NAMES[module]) | st.builds("--{}".format, words)
    one = st.one_of(
        st.tuples(name, flag_values), st.tuples(name), st.tuples(flag_values),
        st.builds(lambda a, b: (f"{a}={b}",), name, flag_values),
    )  # fmt: skip
    return st.lists(one, max_size=5).map(lambda parts: [word for part in parts for word in part])


both = st.sampled_from([train_args, inference_checks]).flatmap(
    lambda module: argv_of(module).map(lambda argv: (module, argv))
)


def without_help(argv: list[str]) -> list[str]:
    return [word for word in argv if word.split("=")[0] not in ("-h", "--help", "--config")]


@pytest.mark.slow
@given(both)
@drawn("flags")
@example((train_args, ["--seed", "9" * 4400]))
@example((train_args, ["--split_ratio", "nan,nan,nan"]))
@example((inference_checks, ["--question", "\ud800", "--options", "A:1 B:2"]))
@example((inference_checks, ["--input=\0.csv", "--output=" + "x" * 300 + ".csv"]))
def test_any_flags_are_read_or_all_that_is_wrong_is_said_at_once(drawing):
    module, argv = drawing
    with contextlib.redirect_stderr(io.StringIO()):
        fine(module.parse_args, without_help(argv))


@pytest.mark.slow
@given(both)
@drawn("main")
@example((inference_checks, ["--prompt", "\ud800"]))
@example((inference_checks, ["--top_k", "1e999"]))
@example((train_args, ["--demo", "--dataset", "x"]))
def test_a_script_with_any_flags_and_nothing_to_read_ends_with_2_and_one_message(room, drawing):
    module, argv = drawing
    if module is train_args:
        main, missing = fine_tuning_llm.main, ["--dataset=./missing.csv", "--model=./missing", "--task=exam"]
    else:
        main, missing = inference.main, ["--model_path=./missing"]
    allowed = ("--debug", "--demo", "--verify_checkpoint", "--verify_resume", "--inspect")  # other stories
    kept = [
        word
        for word in without_help(argv)
        if word.split("=")[0].replace("-", "_")[2:] not in [name[2:] for name in allowed]
    ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(room) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        before = sorted(room.rglob("*"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*kept, *missing])
        assert sorted(room.rglob("*")) == before
    assert code == 2 and len([line for line in err.getvalue().split("\n") if line.startswith("✗")]) == 1
    assert "Traceback" not in err.getvalue() + out.getvalue() and not out.getvalue()


LINES = [
    "seed: 3", "cpu: true", "cpu: maybe", "seed: [1, 2]", "a: &a [*a]", "x: &x [1]", "seed: *x",
    "<<: *x", "- 1",
    "? [a]", "seed: !!python/object/apply:os.system [ls]", "seed: !!int ''", "seed: !!timestamp x",
    "seed: 1:2",
    "seed: 2020-99-99", "{", "}", "[", "\t", '"\\ud800": 1', "---", "...", "%YAML 1.9", "%TAG ! !",
    "seed: |\n  x", "&",
    "*", "seed: ~", "~: 1", "max-steps: 5", "--seed: 4", "help: 1", "config: x",
    "seed: 0x" + "f" * 5000, "!", "'", "#",
]  # fmt: skip


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=6).map("\n".join)
    | st.builds(lambda value: yaml.safe_dump(value, allow_unicode=True), st.dictionaries(
        st.sampled_from(["seed", "cpu", "max_steps", "dataset", "split_ratio"]),
        st.none() | st.booleans() | st.integers() | st.floats()
        | st.text(max_size=9) | st.lists(st.integers(), max_size=3)
    ))
)  # fmt: skip
@drawn("config")
@example("seed: !!int ''")
@example("a: &a [x, x]\nb: &b [*a, *a]\n<<: *b")
def test_any_config_file_gives_flags_or_says_what_is_wrong_and_where(room, text):
    file = room / "run.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    entries = fine(config_file.read, file)
    assert entries is None or all(
        isinstance(key, str) and isinstance(value, (str, config_file.NotTextError))
        for key, _, value in entries
    )
    with contextlib.redirect_stderr(io.StringIO()):
        fine(train_args.parse_args, ["--config", str(file)])


# ---- the terminal ------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    st.lists(st.sampled_from([*"ABCabc:：.,、()（） \t1210", "A:", "B：", "(A)"]) | words, max_size=14).map(
        "".join
    )
)
@drawn("options")
@example("9:x 10:y 11:z")
@example("Z:x [:y")
def test_any_line_of_options_is_read_or_refused(line):
    read = fine(option_syntax.parse_options, line)
    assert read is None or (len(read) >= 2 and all(read.values()))
    fine(option_syntax.from_lines, line.split(" "))


class Deaf:
    """A predictor that answers nothing."""

    def predictions(self, *_):
        return [{"word": "天", "probability": 1.0}]

    def warn_of_blanks(self, _):
        pass

    def method(self, wanted):
        return wanted

    def warn(self, *_):
        pass


@pytest.mark.slow
@given(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "top ", "words ", "method ", "orders ", "TOP ", "help", "?", "top", "reset"]),
        words | st.integers().map(str),
        st.sampled_from(["", " ", "\t", "\r"]),
    )
)
@drawn("terminal")
@example("top ²")
@example("top " + "9" * 5000)
@example("top ٣")
def test_any_entry_is_taken_or_refused(entry):
    terminal = FillMaskRepl(Deaf(), None, 5)
    if entry.strip().lower() != "qa":
        with contextlib.redirect_stdout(io.StringIO()):
            fine(terminal.handle, entry.strip())


# ---- what programs left ------------------------------------------------------------------------------------

CARD = {"format": 1, "scoring": "pll", "max_length": 128, "template": {}}
card_keys = (
    "format", "task", "chat", "objective", "scoring", "step", "parameters", "template",
    "max_length", "base_model",
    "dataset", "pool", "flags", "fingerprints", "sketches", "lineage", "history", "results",
    "growth", "labels",
    "versions", "unknown",
)  # fmt: skip


@pytest.mark.slow
@given(
    st.dictionaries(st.sampled_from(card_keys), values, max_size=3).map(lambda more: {**CARD, **more})
    | values
)
@drawn("card")
@example({**CARD, "results": {"\ud800": None}})
def test_any_run_card_is_read_or_refused(room, card):
    from finetune.models.run_card import RunCard

    (room / "run_card.json").write_text(json.dumps(card), encoding="utf-8")
    read = fine(RunCard.read, room)
    if read is not None:
        assert isinstance(read.max_length, int) and isinstance(read.trained_on, object)
        with tempfile.TemporaryDirectory() as folder:
            read.write(Path(folder))


@pytest.mark.slow
@given(
    st.builds(json.dumps, values).map(str.encode)
    | contents()
    | st.builds(
        lambda files: json.dumps({"format": 1, "files": files}).encode(),
        values | st.dictionaries(words, values),
    )
)
@drawn("manifest")
def test_any_manifest_gives_a_list_of_what_is_wrong(room, raw):
    folder = room / "sealed"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(raw)
    found = manifest.verify(folder)
    assert found and all(isinstance(one, str) for one in found)


SHIPPED = json.loads((ROOT / "ds_config.json").read_text(encoding="utf-8"))
ds_keys = st.sampled_from(
    [*SHIPPED, "optimizer", "scheduler", "steps_per_print", "csv_monitor", "compile", "amp"]
)
ds_blocks = st.dictionaries(
    st.sampled_from(
        ["enabled", "stage", "type", "params", "lr", "betas", "reduce_bucket_size", "overlap_comm"]
    ),
    values
    | st.just("auto")
    | st.dictionaries(st.sampled_from(["lr", "x"]), values | st.just("auto"), max_size=2),
    max_size=3,
)


@pytest.mark.slow
@given(
    st.dictionaries(ds_keys, values | st.just("auto") | ds_blocks, max_size=3).map(
        lambda more: {**SHIPPED, **more}
    )
    | values
)
@drawn("deepspeed")
@example({"optimizer": {"type": "AdamW", "params": [1]}})
@example({"zero_optimization": {"stage": "auto", "reduce_bucket_size": [["auto"]]}})
@example({"bf16": {"auto": None}})
def test_any_deepspeed_config_is_resolved_or_refused(room, config):
    file = room / "ds.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    read = fine(deepspeed_config.read, file)
    if read is not None:
        assert deepspeed_config.precision_in(read) in ("auto", "bf16", "fp16")
        micro = deepspeed_config.micro_batch_in(read, 32, 2)
        how = deepspeed_config.Settings(32, micro or 8, 2, 1.0, "fp32", 3e-5, 0.01, 10, 100)
        resolved = fine(deepspeed_config.resolve, read, how, 64, "ds.json")
        # of values: a key may be called so
        assert resolved is None or not re.search(r'"auto"(?!:)', json.dumps(resolved))


@given(values)
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
def test_any_value_can_be_shown_in_a_message(value):
    assert 0 < len(errors.shown(value)) <= errors.LONGEST_SHOWN + 10


def test_at_least_ten_thousand_inputs_are_drawn():
    assert sum(DRAWN.values()) >= 10_000
