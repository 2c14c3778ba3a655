"""Whatever a person feeds: every file of tests/broken through every door it fits, and what is too big or too
odd to be kept there. A file added to that folder is tested without a word here."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, run_process, write_csv

import fine_tuning_llm
import inference

BROKEN = Path(__file__).parents[1] / "broken"
SECONDS = 10  # of the processor, so that a busy machine fails nothing; what only waits ends with the test
HUGE = 100_000_000  # characters of a line
HAN = re.compile("[\u4e00-\u9fff]")
GOOD_ROW = ["天地玄黃？", "地", "玄", "黃", "宇", "A"]

pytestmark = pytest.mark.timeout(120)

# Files that some door can read, or read around: what is right then is an answer, and no exit code 2.
READABLE = {
    "huge_answer.csv": {"classify by columns", "use"},  # a label may be any text; the key is not looked at
    # the rows are whole: only the names of the classes are lost
    "spoilt_features.parquet": {"classify", "look"},
    "escapes.csv": {"use"}, "huge_answer.jsonl": {"use"}, "odd_types.parquet": {"use"},
    "numbers.jsonl": {"use"}, "booleans.jsonl": {"use"}, "huge_float.jsonl": {"use"},
    "bytes_no_text.parquet": {"use"}, "reading_huge_answer.csv": {"use"},
    "run_card.json/template_empty": {"use", "train"},  # what it leaves open is as it always was
    "tokenizer_config.json/no_keys": {"use", "train"},
}  # fmt: skip


def files(folder: str) -> list[Path]:
    return sorted(file for file in (BROKEN / folder).rglob("*") if file.is_file())


def each(folder: str):
    """Parametrizes a test by the files of a folder of tests/broken."""
    return pytest.mark.parametrize("name", [str(file.relative_to(BROKEN / folder)) for file in files(folder)])


@dataclass
class Ended:
    code: int
    out: str
    err: str


class Door:
    """Runs a script's `main` in a folder of its own, and looks at what every end has in common."""

    def __init__(self, folder: Path, capsys):
        self.folder, self.capsys = folder, capsys

    def tree(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b""
            for path in self.folder.rglob("*")
        }

    def run(self, main, *argv: object) -> Ended:
        self.capsys.readouterr()
        began = time.process_time()
        code = main(list(map(str, argv)))
        assert time.process_time() - began < SECONDS
        seen = self.capsys.readouterr()
        assert "Traceback" not in seen.err + seen.out
        return Ended(code, seen.out, seen.err)

    def refused(self, main, *argv: object, names: str) -> Ended:
        """Exit code 2 and one message in Chinese that names what is meant; nothing changed or written."""
        before = self.tree()
        ended = self.run(main, *argv)
        assert self.tree() == before
        assert ended.code == 2, ended.err[-2000:]
        assert ended.err.count("✗") == 1 and names in ended.err and HAN.search(ended.err.partition("✗")[2])
        assert len(ended.err) < 20_000  # a person is to read it
        return ended


@pytest.fixture
def door(tmp_path, monkeypatch, capsys) -> Door:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path.parent / f"{tmp_path.name}.state"))
    return Door(tmp_path, capsys)


@pytest.fixture(scope="session")
def classifier_dir(tmp_path_factory, model_dir) -> Path:
    from transformers import AutoModelForSequenceClassification

    folder = shutil.copytree(model_dir, tmp_path_factory.mktemp("models") / "sorter")
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory, model_dir, exam_dir) -> Path:
    """--save_dir of a run of one step."""
    home = tmp_path_factory.mktemp("run")
    data = ["--model", model_dir, "--dataset", exam_dir, "--cpu", "--exam_limit", 1]
    kept = ["--save_dir", home / "checkpoints", "--output_dir", home / "out/model"]
    assert fine_tuning_llm.main(list(map(str, [*data, *kept, "--max_steps", 1]))) == 0
    return home / "checkpoints"


def copied(door: Door, folder: str, name: str) -> Path:
    return Path(shutil.copy(BROKEN / folder / name, door.folder / Path(name).name))


def dry_run_args(model: Path, data: Path, *more: object) -> list[object]:
    return ["--model", model, "--dataset", data, "--cpu", "--dry_run", *more]


# ---- every file through every door -------------------------------------------------------------------------


@each("rows")
def test_broken_rows_are_refused_by_every_task_with_one_message(name, door, model_dir, qwen_dir):
    source = copied(door, "rows", name)
    by_columns = ["--task", "classify", "--text_column", "question", "--label_column", "answer"]
    doors = {task: dry_run_args(model_dir, source, "--task", task) for task in ("exam", "mlm", "classify")}
    doors |= {task: dry_run_args(qwen_dir, source, "--task", task) for task in ("cpt", "sft")}
    doors["classify by columns"] = dry_run_args(model_dir, source, *by_columns)
    for what, argv in doors.items():
        if what in READABLE.get(name, ()):
            assert door.run(fine_tuning_llm.main, *argv).code == 0
        else:
            door.refused(fine_tuning_llm.main, *argv, names=name)


@each("rows")
def test_broken_rows_are_skipped_on_request_and_said_or_refused(name, door, model_dir):
    source = copied(door, "rows", name)
    ended = door.run(fine_tuning_llm.main, *dry_run_args(model_dir, source, "--on_bad_rows", "skip"))
    assert ended.code in (0, 2)
    if ended.code == 0:
        assert re.search(r"略過 \d+ 列", ended.err) and name in ended.err and "✗" not in ended.err
    else:
        assert ended.err.count("✗") == 1 and name in ended.err


@each("rows")
def test_broken_rows_of_a_file_to_answer_stand_in_its_error_column_or_the_file_is_refused(
    name, door, model_dir, qwen_dir, classifier_dir
):
    source = copied(door, "rows", name)
    for place, model in enumerate((model_dir, qwen_dir, classifier_dir)):
        before = door.tree()
        more = ["--max_new_tokens", 4] if model == qwen_dir else []
        output = door.folder / f"a{place}.jsonl"
        words = ["--model_path", model, "--cpu", "--input", source, "--output", output, *more]
        ended = door.run(inference.main, *words)
        assert ended.code in (0, 2), ended.err
        if ended.code == 2:
            assert ended.err.count("✗") == 1 and name in ended.err and door.tree() == before
            continue
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        errors = [row for row in rows if row["error"]]
        assert "✗" not in ended.err and f"{len(rows)} 列，答了 {len(rows) - len(errors)} 列" in ended.err
        assert all(HAN.search(row["error"]) for row in errors)
        assert errors or place == 2 or "use" in READABLE.get(name, ()), "nothing is said of what is broken"
        after = door.tree()
        del after[output.name]
        assert after == before


@each("rows")
def test_broken_rows_are_refused_by_an_exam_and_reported_by_inspect(name, door, model_dir):
    source = copied(door, "rows", name)
    exam = ["--model_path", model_dir, "--cpu", "--exam", source, "--split", "all", "--report", "report"]
    door.refused(inference.main, *exam, names=name)
    before = door.tree()
    ended = door.run(inference.main, "--model_path", model_dir, "--cpu", "--inspect", source)
    assert ended.code == 0 if "look" in READABLE.get(name, ()) else ended.code == 2, ended
    assert ended.err.count("✗") <= 1 and name in ended.err + ended.out
    assert door.tree() == before


@each("rows")
def test_the_terminal_outlasts_every_broken_file_typed_into_it(name, door, monkeypatch, model_dir):
    typed = (BROKEN / "rows" / name).read_bytes()
    for words in (typed, b"qa\n" + typed, b"top " + typed):
        stdin = io.TextIOWrapper(io.BytesIO(words + b"\nq\n"), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stdin)
        ended = door.run(inference.main, "--model_path", model_dir, "--cpu")
        assert ended.code == 0 and "👋 再見！" in ended.out and "✗" not in ended.err


@pytest.mark.slow
def test_the_terminals_of_other_models_outlast_all_broken_files_too(
    door, monkeypatch, qwen_dir, classifier_dir
):
    small = [raw for raw in (file.read_bytes() for file in files("rows")) if len(raw) < 2000]
    typed = b"\n".join(raw.partition(b"\n")[0] for raw in small)
    for model in (qwen_dir, classifier_dir):
        # as in a C locale: what is no UTF-8 arrives as half characters
        stdin = io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8", errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", stdin)
        more = ["--max_new_tokens", 1] if model == qwen_dir else []
        ended = door.run(inference.main, "--model_path", model, "--cpu", *more)
        assert ended.code == 0 and "👋 再見！" in ended.out


@each("configs")
def test_a_broken_config_file_is_refused_with_its_name(name, door, model_dir, exam_dir):
    config = copied(door, "configs", name)
    door.refused(fine_tuning_llm.main, *dry_run_args(model_dir, exam_dir, "--config", config), names="--")
    assert not (door.folder / "owned").exists()


@each("deepspeed")
def test_a_broken_deepspeed_config_is_refused_before_anything_is_loaded(name, door, model_dir, exam_dir):
    config = copied(door, "deepspeed", name)
    more = ["--engine", "deepspeed", "--deepspeed_config", config]
    ended = door.refused(fine_tuning_llm.main, *dry_run_args(model_dir, exam_dir, *more), names=name)
    assert "引擎" not in ended.err


@each("models")
def test_a_broken_file_in_a_model_folder_is_refused_with_its_name(name, door, model_dir, exam_dir):
    kind = Path(name).parent.name
    folder = shutil.copytree(model_dir, door.folder / "model")
    shutil.copy(BROKEN / "models" / name, folder / kind)
    if kind == "vocab.txt":
        (folder / "tokenizer.json").unlink(missing_ok=True)  # which would be read instead
    if kind == "adapter_config.json":
        shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")
    asked = ["--model_path", folder, "--cpu", "--question", "天？", "--options", "A:地 B:玄"]
    training = ["--model", folder, "--dataset", exam_dir, "--cpu", "--max_steps", 1, "--exam_limit", 1]
    for what, main, argv in (("use", inference.main, asked), ("train", fine_tuning_llm.main, training)):
        if what in READABLE.get(name, ()):
            assert door.run(main, *argv).code == 0
        else:
            door.refused(main, *argv, names="model")


@each("checkpoints")
def test_a_broken_file_in_a_checkpoint_is_refused_with_its_folder(
    name, door, model_dir, exam_dir, checkpoint_dir
):
    shutil.copytree(checkpoint_dir, door.folder / "from")
    for step in (door.folder / "from").glob("step*"):
        shutil.copy(BROKEN / "checkpoints" / name, step / Path(name).parent.name)
    go_on = ["--model", model_dir, "--dataset", exam_dir, "--cpu", "--max_steps", 2, "--load_dir", "from"]
    door.refused(fine_tuning_llm.main, *go_on, names="from")


def test_the_folder_of_broken_files_is_small_and_says_what_each_is_for():
    everything = [file for file in BROKEN.rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in everything) < 100_000
    told = (BROKEN / "README.md").read_text(encoding="utf-8")
    assert all(f"{folder.name}/" in told for folder in BROKEN.iterdir() if folder.is_dir())


# ---- too big or too odd to be kept -------------------------------------------------------------------------


def written(path: Path, *pieces: bytes) -> Path:
    with path.open("wb") as stream:
        for piece in pieces:
            stream.write(piece)
    return path


# The peak that the kernel counts of this very program, not of what it was forked from.
MEASURED = """
import re, sys, time
import fine_tuning_llm
code = fine_tuning_llm.main(sys.argv[1:])
print(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1], time.process_time())
sys.exit(code)
"""


@pytest.mark.slow
def test_lines_of_a_hundred_megabytes_are_refused_in_ten_seconds_and_bounded_memory(tmp_path, qwen_dir):
    line = "天".encode() * (HUGE // 3)
    folder = tmp_path / "texts"
    folder.mkdir()
    written(folder / "a.csv", b"text\n", line, b"\n")
    written(folder / "b.jsonl", b'{"text": "', line, b'"}\n')
    written(folder / "c.json", b'[{"text": "', line, b'"}]')
    written(folder / "d.txt", line)
    argv = [sys.executable, "-c", MEASURED, "--task", "cpt", *dry_run_args(qwen_dir, folder)]
    done = run_process(argv, tmp_path, timeout=120, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and done.stderr.count("✗") == 1 and "Traceback" not in done.stderr
    assert all(f"{name}" in done.stderr for name in ("a.csv:2", "b.jsonl:1", "c.json", "d.txt:1"))
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 1_500_000 and seconds < SECONDS  # of all four files, and the imports


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_after_a_line_that_is_too_long_the_next_rows_are_read(suffix, door, monkeypatch, model_dir):
    from finetune.runtime import strict_json

    monkeypatch.setattr(strict_json, "LONGEST", 1000)
    good = json.dumps({"question": "天？", "A": "地", "B": "玄"}, ensure_ascii=False)
    lines = {
        "csv": ["question,A,B", "天？,地,玄", "天" * 3000 + "？,地,玄", "日？,月,盈"],
        "jsonl": [good, good.replace("天", "天" * 3000), good],
    }[suffix]
    (door.folder / f"q.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["--model_path", model_dir, "--cpu", "--input", f"q.{suffix}", "--output", "a.jsonl"]
    assert door.run(inference.main, *words).code == 0
    rows = [json.loads(line) for line in Path("a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert ["超過" in (row["error"] or "") for row in rows] == [False, True, False]


def test_a_row_of_json_that_never_ends_is_refused(door, monkeypatch, model_dir):
    from finetune.runtime import strict_json

    monkeypatch.setattr(strict_json, "LONGEST", 1 << 17)
    source = written(door.folder / "q.json", b'[{"question": "', b"a" * (1 << 19), b'"}]')
    door.refused(fine_tuning_llm.main, *dry_run_args(model_dir, source), names="q.json")


@pytest.mark.parametrize(
    "name", ["q.json", "q.jsonl", "objects.json", "objects.jsonl", "run.yaml", "ds.json"]
)
def test_a_hundred_thousand_brackets_are_refused(name, door, model_dir, qwen_dir, exam_dir):
    opening, closing = (b'{"a":', b"}") if "objects" in name else (b"[", b"]")
    deep = opening * 100_000 + (b"1" if "objects" in name else b"") + closing * 100_000
    if name == "run.yaml":
        deep = b"seed: " + b"[" * 30_000 + b"]" * 30_000  # a longer file is no config file
    source = written(door.folder / name, deep)
    if name == "run.yaml":
        argv = dry_run_args(model_dir, exam_dir, "--config", source)
    elif name == "ds.json":
        argv = dry_run_args(model_dir, exam_dir, "--engine", "deepspeed", "--deepspeed_config", source)
    else:
        argv = dry_run_args(model_dir, source)
        door.refused(fine_tuning_llm.main, *dry_run_args(qwen_dir, source, "--task", "sft"), names=name)
    door.refused(fine_tuning_llm.main, *argv, names=name)


def test_a_config_file_of_a_gigabyte_is_refused_at_once(door, model_dir, exam_dir):
    for name, more in (
        ("run.yaml", ["--config"]),
        ("ds.json", ["--engine", "deepspeed", "--deepspeed_config"]),
    ):
        with (door.folder / name).open("wb") as stream:
            stream.truncate(1 << 30)  # sparse: nothing on the disk
        words = dry_run_args(model_dir, exam_dir, *more, door.folder / name)
        door.folder, whole = door.folder / "nothing", door.folder  # its tree is a gigabyte
        assert door.refused(fine_tuning_llm.main, *words, names=name)
        door.folder = whole
        (door.folder / name).unlink()


def odd(folder: Path, kind: str, suffix: str) -> Path:
    """Something that is no file, under a file's name."""
    path = folder / f"odd{suffix}"
    if kind == "folder":
        path.mkdir()
    elif kind == "folder of rubbish":
        path.mkdir()
        for file in files("rows")[:40]:
            shutil.copy(file, path / f"{file.name}.bak")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "link to nothing":
        path.symlink_to(folder / "nowhere")
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "not permitted":
        path.write_text("x")
        path.chmod(0)
    return path


KINDS = [
    "folder", "folder of rubbish", "pipe", "link to itself", "link to nothing", "device", "endless device",
    "not permitted",
]  # fmt: skip


@pytest.fixture
def no_privilege():
    """Root too may read and write only what the modes of files allow: on Linux it can lay down the two
    capabilities by which it passes them by (capabilities(7): 1 is DAC_OVERRIDE, 2 is DAC_READ_SEARCH)."""
    if os.geteuid() != 0 or sys.platform != "linux":
        yield
        return
    library = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(header, held) == 0
    before = held[0]
    held[0] = before & ~(1 << 1 | 1 << 2)
    assert library.capset(header, held) == 0
    yield
    held[0] = before
    assert library.capset(header, held) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_at_every_door_and_never_waited_for(
    kind, door, model_dir, qwen_dir, exam_dir, monkeypatch, no_privilege
):
    def nothing_changed(self):  # a pipe cannot be read
        return sorted(map(str, self.folder.rglob("*")))

    monkeypatch.setattr(Door, "tree", nothing_changed)
    rows, config = odd(door.folder, kind, ".csv"), odd(door.folder, kind, ".yaml")
    ds = odd(door.folder, kind, ".json")
    if kind == "not permitted":
        for file in (rows, config, ds):
            with pytest.raises(PermissionError):
                file.read_bytes()
    for task in ("exam", "mlm", "classify", "cpt", "sft"):
        model = qwen_dir if task in ("cpt", "sft") else model_dir
        door.refused(fine_tuning_llm.main, *dry_run_args(model, rows, "--task", task), names="odd")
    door.refused(fine_tuning_llm.main, *dry_run_args(model_dir, exam_dir, "--config", config), names="odd")
    more = ["--engine", "deepspeed", "--deepspeed_config", ds]
    door.refused(fine_tuning_llm.main, *dry_run_args(model_dir, exam_dir, *more), names="odd")
    used = ["--model_path", model_dir, "--cpu"]
    door.refused(inference.main, *used, "--input", rows, "--output", "a.csv", names="odd")
    door.refused(inference.main, *used, "--exam", rows, "--report", "report", names="odd")
    door.refused(inference.main, *used, "--inspect", rows, names="odd")
    door.refused(inference.main, "--model_path", rows, "--cpu", "--prompt", "天", names="odd")


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "endless device"])
def test_what_is_no_file_in_a_folder_of_data_is_passed_over_or_refused(kind, door, model_dir, qwen_dir):
    data = door.folder / "data"
    data.mkdir()
    odd(data, kind, ".csv")
    for task in ("exam", "mlm", "classify", "cpt", "sft"):
        model = qwen_dir if task in ("cpt", "sft") else model_dir
        assert door.run(fine_tuning_llm.main, *dry_run_args(model, "data", "--task", task)).code == 2
    write_csv(data / "good.csv", [GOOD_ROW] * 3)
    assert door.run(fine_tuning_llm.main, *dry_run_args(model_dir, "data")).code == 0


@pytest.mark.parametrize(
    "name",
    ["two\nlines.csv", "\x1b[31mred.csv", "天地.tar.gz", "a b.CSV", "no_suffix", "-dash.csv", "\udcff.csv",
     ".csv", "q.csv.gz", "*.csv", "%s.csv", "{x}.csv"],
)  # fmt: skip
def test_a_file_with_an_odd_name_is_read_or_refused_under_its_name(name, door, model_dir):
    source = write_csv(door.folder / "in" / name, [[*GOOD_ROW[:5], "Z"]])
    ended = door.refused(fine_tuning_llm.main, *dry_run_args(model_dir, source), names="in/")
    assert "\x1b" not in ended.err


def test_a_name_that_no_file_system_takes_is_refused(door, model_dir, exam_dir):
    for name in ("x" * 300, "x/" * 3000 + "y.csv", "a\0b.csv", "~nobody_of_this_name/x.csv", "\ud800.csv"):
        for flag in ("--dataset", "--model", "--load_dir", "--config", "--save_dir", "--output_dir"):
            words = [*dry_run_args(model_dir, exam_dir), f"{flag}={name}"]
            door.refused(fine_tuning_llm.main, *words, names="--")
        for flag in ("--exam", "--inspect", "--model_path"):
            door.refused(inference.main, f"{flag}={name}", "--cpu", names=flag)
        door.refused(inference.main, f"--input={name}", "--output=a.csv", "--cpu", names="--input")
