"""What is a person's stays, whatever a run replaces: notes in a model folder, files that links lead to, a
folder with other things in it. And what a run leaves can be read by those whom the umask lets."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from conftest import read_log

from finetune.reports import report
from finetune.runtime import manifest, user_files
from finetune.runtime.errors import RunError, UserError

NAME = "my_bert_finetuned_model_hf_format"
STEPS = ["--max_steps", "2", "--train_batch_size", "8", "--exam_limit", "2", "--learning_rate", "1e-3"]
OWN = ("notes.txt", ".git/config", "onnx/model.onnx")
LINKS = ("train_log.jsonl", "test_qa_data.json", "validation_loss_curve.png", ".train_log.jsonl.half")


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"my {name}")
        (folder / name).chmod(0o600)


def all_there(folder: Path, *names: str) -> bool:
    files = [folder / name for name in names]
    mine = all(path.read_text() == f"my {name}" for path, name in zip(files, names, strict=True))
    return mine and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


@pytest.fixture(scope="module")
def twice(tmp_path_factory, model_dir, exam_dir):
    """(folder, what the second run said) of two runs in one folder, with a person's files put in between, and
    links of a stranger at the names that the second one writes to."""
    import fine_tuning_llm

    folder, before, mask = tmp_path_factory.mktemp("twice"), Path.cwd(), os.umask(0o027)
    os.chdir(folder)
    words = ["--model", model_dir, "--dataset", exam_dir, "--cpu", *STEPS]
    try:
        assert fine_tuning_llm.main(list(map(str, words))) == 0
        put(folder / NAME, *OWN)
        put(folder / "checkpoints/best", *OWN)
        put(folder / "report", "notes.txt", "confusion_of_mine.png")
        (folder / "victim").write_text("precious")
        for name in LINKS:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(folder / "victim")
        (folder / "checkpoints/.step4.half").symlink_to(folder / "report")
        (folder / "checkpoints/.step_by_step").mkdir()
        words[words.index("--max_steps") + 1] = "4"
        assert fine_tuning_llm.main([*map(str, words), "--num_epochs", "2", "--save_interval", "1"]) == 0
    finally:
        os.chdir(before)
        os.umask(mask)
    return folder


@pytest.mark.slow
def test_a_persons_files_outlive_the_model_they_lay_beside(twice):
    assert all_there(twice / NAME, *OWN)
    archive = twice / "checkpoints/earlier_1/best"  # another run's best model: moved aside as a whole
    assert all_there(archive, *OWN) and manifest.verify(archive) == []
    assert all_there(twice / "report", "notes.txt", "confusion_of_mine.png")
    assert (twice / "checkpoints/.step_by_step").is_dir()


def test_no_link_at_a_name_that_can_be_foreseen_is_followed(twice):
    assert (twice / "victim").read_text() == "precious" and read_log(twice)
    assert not any((twice / name).is_symlink() for name in LINKS[:3])
    assert (twice / "report/results.json").is_file() and (twice / "checkpoints/step4").is_dir()


def test_all_that_a_run_leaves_has_the_mode_that_the_umask_gives(twice):
    mine = {"notes.txt", "config", "model.onnx", "confusion_of_mine.png", "victim"}
    files = [path for path in twice.rglob("*") if path.is_file() and path.name not in mine]
    assert len([path for path in files if path.name == "model.safetensors"]) >= 4
    modes = {str(path): stat.S_IMODE(path.stat().st_mode) for path in files if not path.is_symlink()}
    assert not {name: oct(mode) for name, mode in modes.items() if mode != 0o640}


def test_the_best_model_keeps_what_a_person_put_beside_it_and_is_none_the_worse(trained_best):
    saver, how = trained_best
    put(saver.best, *OWN)
    assert manifest.verify(saver.best) == []
    saver.save_best(how)
    assert all_there(saver.best, *OWN) and manifest.verify(saver.best) == []
    (saver.best / "pytorch_model.bin").write_text("x")  # no note: a model would be read from it
    assert manifest.verify(saver.best) == ["多了 pytorch_model.bin"]


@pytest.fixture
def trained_best(tmp_path):
    import torch

    from finetune.runtime.distributed import Distributed
    from finetune.training.checkpoints import Checkpoints

    saver = Checkpoints(tmp_path / "checkpoints", {}, 2, Distributed(0, 1, torch.device("cpu")))

    def write(folder: Path) -> None:
        (folder / "run_card.json").write_text("{}")
        (folder / "model.safetensors").write_text("x")

    saver.save_best(write)
    return saver, write


def test_files_are_carried_over_as_they_are_and_never_over_those_of_the_new_model(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    put(tmp_path / "old", *OWN, "config.json", "adapter_model.safetensors", "later.txt")
    (tmp_path / "old/link").symlink_to("notes.txt")
    put(tmp_path / "new", "config.json")
    (tmp_path / "new/later.txt").write_text("new")
    assert user_files.carry_over(tmp_path / "old", tmp_path / "new") == [".git", "link", "notes.txt", "onnx"]
    assert all_there(tmp_path / "new", *OWN) and os.readlink(tmp_path / "new/link") == "notes.txt"
    assert (tmp_path / "new/later.txt").read_text() == "new"
    assert not (tmp_path / "new/adapter_model.safetensors").exists()


# ---- reports -----------------------------------------------------------------------------------------------


def of(version: str) -> report.Report:
    return report.Report({"模型": version}, {}, {}, notes=[])


def versions(folder: Path) -> set[str]:
    """Of which report each file is."""
    files = {
        path.name: path.read_text() for path in folder.iterdir() if path.suffix[1:] in ("md", "html", "json")
    }
    assert {"results.json", "report.md", "index.html"} <= files.keys()
    return {version for text in files.values() for version in ("former", "latter") if version in text}


@pytest.mark.parametrize("notes", [False, True])
def test_wherever_a_report_breaks_off_the_former_one_is_whole(tmp_path, monkeypatch, notes):
    """Of all its files, predictions and pictures too. Beside a person's notes its files are put in place one
    by one, once all of them are written."""
    from test_files import interrupted

    monkeypatch.setattr(report, "render", lambda made, _: str(made.facts))  # it draws for half a second
    folder, seen = tmp_path / "r", []
    for at in range(80):
        report.write(folder, of("former"))
        put(folder, "predictions.jsonl", *(["notes.txt"] if notes else []))
        with monkeypatch.context() as patch:
            done = interrupted(patch, at)
            try:
                report.write(folder, of("latter"))
            except RunError as error:
                assert str(folder) in str(error) and "先前的報告沒有動" in str(error)
        found = versions(folder)
        former = found == {"former"}
        if not notes or former:
            assert len(found) == 1 and former == (folder / "predictions.jsonl").exists(), at
        assert not notes or all_there(folder, "notes.txt")
        seen.append(former)
        if len(done) <= at:
            break
    assert seen[0] and not seen[-1] and seen == sorted(seen, reverse=True) and sum(seen) > 10


def test_a_report_takes_no_files_of_others_in_its_place(tmp_path, capsys):
    """Before a model is loaded, and before anything is trained."""
    import fine_tuning_llm
    import inference

    put(tmp_path, "index.html")
    (tmp_path / "results.json").write_text(json.dumps([1]))
    code = inference.main(["--exam", "demo", "--report", str(tmp_path)])
    seen = capsys.readouterr().err
    assert code == 2 and f"--report {tmp_path} 裡已有 results.json、index.html" in seen
    (tmp_path / "x/report").mkdir(parents=True)
    put(tmp_path / "x/report", "report.md")
    words = ["--demo", "--cpu", "--output_dir", str(tmp_path / "x/model")]
    assert fine_tuning_llm.main([*words, "--save_dir", str(tmp_path / "saves")]) == 2
    assert "x/report 裡已有 report.md" in capsys.readouterr().err and not (tmp_path / "saves").exists()
    with pytest.raises(UserError, match="是一個檔案"):
        report.check_folder(tmp_path / "index.html", "--report")
