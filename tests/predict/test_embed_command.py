"""--embed, --nearest and --hidden_states: files of vectors, the nearest rows, what every layer computes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import command, free_port, make_causal_dir, make_model_dir, run_process, write_rows
from test_embedder import body_folder, some_texts

import inference
from finetune.cli.embed_checks import USED_BY
from finetune.cli.inference_parser import build_parser
from finetune.cli.job_flags import ALWAYS
from finetune.runtime import console
from finetune.runtime.errors import UserError
from finetune.runtime.journal import Journal


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model_dir):
    """An encoder that brings its pooling, the tiny masked model, and a causal one."""
    made = tmp_path_factory.mktemp("models")
    body_folder(made / "encoder")
    parts = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {
            "idx": at,
            "name": str(at),
            "path": f"{at}_{kind}" * bool(at),
            "type": f"sentence_transformers.models.{kind}",
        }
        for at, kind in enumerate(parts)
    ]
    (made / "encoder" / "modules.json").write_text(json.dumps(modules))
    (made / "encoder" / "1_Pooling").mkdir()
    (made / "encoder" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    return {"encoder": made / "encoder", "masked": model_dir, "causal": make_causal_dir(made / "causal")}


@pytest.fixture
def texts(tmp_path):
    """Eleven texts with ids, a row without a text and one that is no text."""
    rows = [{"id": f"n{at}", "text": text} for at, text in enumerate(some_texts())]
    return write_rows(tmp_path / "t.jsonl", [*rows[:3], {"id": "bad", "text": " "}, *rows[3:], {"text": [1]}])


def vectors_of(path):
    """The embedding column of a parquet file."""
    table = pyarrow.parquet.read_table(path)
    assert table.schema.field("embedding").type.list_size == 32
    return np.array(table["embedding"].to_pylist())


def expected(folder, texts, pooling=None):
    model, tokenizer, device = inference.load_model(folder, "cpu")
    return inference.embed(model, tokenizer, texts, device, pooling)


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["encoder", "masked", "causal"])
def test_both_formats_hold_a_vector_for_every_row_and_say_which_rows_have_none(run, folders, texts, which):
    code, out, err = run(which, "--embed", texts, "--output", "v.parquet", "--json")
    assert code == 0 and "13 列，有向量的 11 列，2 列沒有向量" in err and "第 4 列：text 是空的" in err
    told = json.loads(out)
    assert (told["rows"], told["errors"], told["dimension"]) == (13, 2, 32)
    assert run(which, "--embed", texts, "--output", "v.npy")[0] == 0
    table, array = pyarrow.parquet.read_table("v.parquet"), np.load("v.npy")
    ids = [json.loads(line) for line in open("v.ids.jsonl", encoding="utf-8")]  # noqa: SIM115
    assert (
        array.dtype == np.float32 and array.shape == (13, 32) and table["row"].to_pylist() == [*range(1, 14)]
    )
    np.testing.assert_array_equal(array, vectors_of("v.parquet").astype(np.float32))
    bad = [at for at in range(13) if np.isnan(array[at]).all()]
    assert bad == [3, 12] and not np.isnan(np.delete(array, bad, 0)).any()
    for name in ("row", "id", "text", "error"):
        assert [row[name] for row in ids] == table[name].to_pylist()
    assert [row["id"] for row in ids] == ["n0", "n1", "n2", "bad", *(f"n{at}" for at in range(3, 11)), None]
    assert [bool(row["error"]) for row in ids] == [at in bad for at in range(13)]
    np.testing.assert_allclose(np.delete(array, bad, 0), expected(folders[which], some_texts()), atol=1e-5)
    noted = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    about = json.loads(open("v.json", encoding="utf-8").read())  # noqa: SIM115
    assert noted["digest"] == about["digest"] and noted["dimension"] == "32" and about["rows"] == 13
    assert noted["pooling"] == about["pooling"] == {"encoder": "cls+normalize"}.get(which, "mean")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.json", "t.parquet", "t.txt"])
def test_any_readable_file_will_do_and_each_line_of_a_txt_is_a_text(run, tmp_path, name):
    rows, said = [{"note": "x", "content": text} for text in some_texts()], some_texts()
    if name == "t.txt":
        (tmp_path / name).write_text("\n" + "\n\n".join(said) + "\n  \n", encoding="utf-8")
    else:
        write_rows(tmp_path / name, rows)
    assert run("masked", "--embed", name, "--output", "v.parquet")[0] == 0
    table = pyarrow.parquet.read_table("v.parquet")
    assert table["text"].to_pylist() == said and not any(table["error"].to_pylist())
    lines = [str(2 * at) for at in range(1, 12)] if name == "t.txt" else [None] * 11  # blank lines are none
    assert table["id"].to_pylist() == lines


def test_a_list_of_texts_is_a_file_of_rows_and_a_column_may_be_named(run, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(some_texts()), encoding="utf-8")
    assert run("masked", "--embed", "t.json", "--output", "a.npy")[0] == 0
    write_rows(tmp_path / "t.csv", [{"text": "日", "other": text} for text in some_texts()])
    assert run("masked", "--embed", "t.csv", "--text_column", "other", "--output", "b.npy")[0] == 0
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))


def test_columns_that_cannot_be_found_are_refused_before_a_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.predict.embed_command.load_body", None)
    write_rows(tmp_path / "pair.csv", [{"sentence1": "天", "sentence2": "地"}])
    write_rows(tmp_path / "odd.csv", [{"x": "天", "y": "地"}])
    (tmp_path / "empty.txt").write_text("\n \n")
    for source, flags, named in (
        ("pair.csv", (), "一對句子"), ("odd.csv", (), "x、y"), ("odd.csv", ("--text_column", "z"), "z"),
        ("odd.csv", ("--text_column", "x,y"), "一列只有一個向量"), ("empty.txt", (), "空的檔案"),
    ):  # fmt: skip
        code, _, err = run("masked", "--embed", source, "--output", "v.npy", *flags)
        assert code == 2 and named in err and source.split(".")[0] in err + "odd", err
        code, _, err = run("masked", "--embed", source, "--nearest", "天", *flags)
        assert code == 2 and named in err


def test_strict_ends_with_2_and_an_output_is_not_overwritten_unless_asked_for(run, texts, tmp_path):
    assert run("masked", "--embed", texts, "--output", "v.npy", "--strict")[0] == 2
    before = (tmp_path / "v.npy").read_bytes()
    for beside in ("v.npy", "v.ids.jsonl", "v.json"):
        assert f"{beside} 已經存在" in run("masked", "--embed", texts, "--output", "v.npy")[2]
        (tmp_path / beside).unlink()
    (tmp_path / "v.json").write_text("mine")
    assert run("masked", "--embed", texts, "--output", "v.npy")[0] == 2
    assert (tmp_path / "v.json").read_text() == "mine"
    assert run("masked", "--embed", texts, "--output", "v.npy", "--overwrite")[0] == 0
    assert (tmp_path / "v.npy").read_bytes() == before


@pytest.mark.parametrize("name", ["v.npy", "v.parquet"])
def test_a_run_that_was_killed_goes_on_to_the_very_same_file(run, texts, tmp_path, monkeypatch, name):
    same = ("masked", "--embed", texts, "--batch_size", 4, "--output")
    assert run(*same, "whole" + name)[0] == 0
    add, rounds = Journal.add, []

    def two_rounds(journal, records):
        if len(rounds) == 2:
            journal.stream.write(b'{"row": 9, "torn')
            journal.stream.flush()
            raise KeyboardInterrupt
        rounds.append(add(journal, records))

    monkeypatch.setattr(Journal, "add", two_rounds)
    code, _, err = run(*same, name)
    assert code == 130 and "同一個指令會接著做" in err and not (tmp_path / name).exists()
    monkeypatch.setattr(Journal, "add", add)
    assert "pooling 不同" in run(*same, name, "--pooling", "cls")[2]
    assert "model、pooling 不同" in run("encoder", *same[1:], name)[2]
    code, _, err = run(*same, name)
    assert code == 0 and "8/13 列" in err and not list(tmp_path.glob("*.part"))
    assert (tmp_path / name).read_bytes() == (tmp_path / ("whole" + name)).read_bytes()


@pytest.mark.slow
def test_two_ranks_write_the_same_file(folders, run, tmp_path):
    write_rows(tmp_path / "t.jsonl", [{"text": text} for text in some_texts()])
    argv = ["--cpu", "--model_path", folders["masked"], "--embed", "t.jsonl", "--batch_size", 2]
    assert run("masked", *argv[3:], "--output", "one.npy")[0] == 0
    start = command("torchrun", "--nproc_per_node", "2", "--master_port", free_port())
    script = inference.__file__
    done = run_process([*start, script, *argv, "--output", "two.npy"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()


def test_a_source_that_changes_meanwhile_is_noticed(run, texts, tmp_path, monkeypatch):
    add = Journal.add

    def changed(journal, records):
        add(journal, records)
        texts.write_text('{"text": "日"}\n')

    monkeypatch.setattr(Journal, "add", changed)
    code, _, err = run("masked", "--embed", texts, "--output", "v.npy", "--batch_size", 4)
    assert code == 1 and "--embed" in err and "途中變了" in err


# ---- the nearest rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["v.parquet", "v.npy", "t.jsonl"])
@pytest.mark.parametrize("which", ["encoder", "causal"])
def test_the_nearest_rows_are_those_of_the_largest_cosine(run, folders, texts, kept, which):
    if kept != "t.jsonl":
        assert run(which, "--embed", texts, "--output", kept)[0] == 0
    code, out, err = run(which, "--embed", kept, "--nearest", "天地", "--top_k", 4, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    vectors, query = expected(folders[which], some_texts()), expected(folders[which], ["天地"])[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    best = np.argsort(-cosines)[:4]
    assert code == 0 and [row["id"] for row in found] == [f"n{at}" for at in best]
    assert [row["text"] for row in found] == [some_texts()[at] for at in best]
    np.testing.assert_allclose([row["similarity"] for row in found], cosines[best], atol=1e-5)
    assert ("2 列沒有向量" in err) == (kept == "t.jsonl")
    _, out, _ = run(which, "--embed", kept, "--nearest", "天地", "--top_k", 1)
    row = found[0]["row"]
    text = console.plain(found[0]["text"], lines=False)
    assert f"1. {cosines[best[0]]:.4f}  {text}（第 {row} 列，id {found[0]['id']}）" in out


def test_the_pooling_of_the_vectors_is_taken_where_none_is_given(run, texts):
    assert run("encoder", "--embed", texts, "--pooling", "mean", "--output", "v.npy")[0] == 0
    _, plain, _ = run("encoder", "--embed", "v.npy", "--nearest", "天", "--json")
    assert (
        plain == run("encoder", "--embed", "v.npy", "--nearest", "天", "--json", "--pooling", "mean")[1] != ""
    )
    code, _, err = run("encoder", "--embed", "v.npy", "--nearest", "天", "--pooling", "cls")
    assert code == 2 and "（encoder、mean、32 維）" in err and "（encoder、cls、32 維）" in err


@pytest.mark.parametrize("name", ["v.parquet", "v.npy"])
def test_vectors_of_another_model_or_of_nowhere_are_refused(run, texts, tmp_path, name):
    assert run("masked", "--embed", texts, "--output", name)[0] == 0
    code, _, err = run("causal", "--embed", name, "--nearest", "天")
    assert code == 2 and "另一個模型" in err and "mean、32 維" in err
    code, _, err = run("masked", "--embed", name, "--output", "again.npy")
    assert code == 2 and "--nearest TEXT" in err
    other = make_model_dir(tmp_path / "other", hidden_size=16)
    assert inference.main(["--cpu", "--model_path", str(other), "--embed", name, "--nearest", "天"]) == 2
    if name == "v.npy":
        np.save("v.npy", np.load("v.npy")[:, :5])
        assert "讀不懂" in run("masked", "--embed", name, "--nearest", "天")[2]
        np.save("v.npy", np.array([None, 1]), allow_pickle=True)
        assert "讀不懂" in run("masked", "--embed", name, "--nearest", "天")[2]
        (tmp_path / "v.json").unlink()
        assert "v.json" in run("masked", "--embed", name, "--nearest", "天")[2]
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
        code, _, err = run("masked", "--embed", name, "--nearest", "天")
        assert code == 2 and "parquet" in err


def test_a_parquet_file_with_vectors_from_elsewhere_is_a_file_of_texts(run, tmp_path):
    rows = [{"text": text, "embedding": [0.0, 1.0]} for text in some_texts()]
    write_rows(tmp_path / "t.parquet", rows)
    ask = ("--nearest", some_texts()[3], "--top_k", 1, "--json")
    code, out, _ = run("masked", "--embed", "t.parquet", *ask)
    assert code == 0 and json.loads(out)["row"] == 4 and json.loads(out)["similarity"] == pytest.approx(1)


# ---- flags -------------------------------------------------------------------------------------------------


def test_flags_that_do_not_fit_are_named_with_their_value_and_the_way_out(run, texts, tmp_path):
    (tmp_path / "x").mkdir()
    shutil.copy(texts, tmp_path / "t.json")
    for flags, named in (
        (("--embed", texts), "--output（.parquet 或 .npy）"),
        (("--embed", "none.txt", "--output", "v.npy"), "--embed none.txt：沒有這個檔案"),
        (("--embed", "x", "--output", "v.npy"), "--embed x 是一個資料夾，應為檔案"),
        (("--embed", texts, "--output", "v.csv"), "--output v.csv：不認得 .csv 檔，要 .parquet、.npy"),
        (("--embed", texts, "--output", "v"), "沒有副檔名"),
        (("--embed", texts, "--output", "none/../x"), "x：沒有副檔名"),
        (("--embed", "t.json", "--output", "t.npy"), "會寫到 --embed 的檔案 t.json 上"),
        (("--embed", texts, "--output", "v.npy", "--nearest", "天"), "--output v.npy 與 --nearest"),
        (("--embed", texts, "--output", "v.npy", "--top_k", "3"), "--top_k 3 與 --embed 不能一起用"),
        (("--embed", texts, "--nearest", "天", "--top_k", "0"), "--top_k 0"),
        (("--embed", texts, "--nearest", " "), "--nearest 是空的"),
        (("--embed", texts, "--nearest", "天", "--overwrite"), "--overwrite 與 --nearest"),
        (("--embed", texts, "--output", "v.npy", "--scoring", "pll"), "--scoring pll 與 --embed"),
        (("--embed", texts, "--output", "v.npy", "--stop", "a", "b"), "--stop a b 與 --embed"),
        (("--embed", texts, "--output", "v.npy", "--prompt", "天"), "一次只能做一件"),
        (("--nearest", "天"), "--nearest 要與 --embed 一起給"),
        (("--pooling", "cls", "--prompt", "天"), "--pooling 要與 --embed 或 --serve 一起給"),
        (("--embed", texts, "--output", "v.npy", "--pooling", "median"), "median"),
        (("--json",), "--compare、--embed、--draw 或 --drift 一起給"),
        (("--hidden_states",), "--hidden_states 要與 --prompt 一起給"),
        (("--prompt", "天", "--hidden_states", "--do_sample"), "--do_sample 與 --hidden_states"),
        (("--prompt", "天", "--hidden_states", "--top_k", "3"), "--top_k 3 與 --hidden_states"),
    ):  # fmt: skip
        code, out, err = run("masked", *flags)
        assert code == 2 and named in err and not out, (flags, err)
    assert not list(tmp_path.glob("v*"))


def test_a_server_has_no_vectors(run, texts):
    code = inference.main(["--model_path", "http://h:1/v1", "--embed", str(texts), "--nearest", "天"])
    assert code == 2


def test_every_flag_that_a_job_uses_is_one():
    known = {action.dest for action in build_parser()._actions}
    assert ALWAYS.union(*USED_BY.values()) <= known


def test_what_an_encoder_cannot_do_is_refused_with_what_it_can(run, texts, tmp_path):
    write_rows(tmp_path / "q.csv", [{"question": "天？", "A": "地", "B": "玄", "answer": "A"}])
    for flags in (
        ("--prompt", "天"), ("--question", "天？", "--options", "A:地 B:玄"), (),
        ("--input", texts, "--output", "o.jsonl"), ("--exam", "q.csv", "--report", "r"),
    ):  # fmt: skip
        code, _, err = run("encoder", *flags)
        assert code == 2 and "--embed" in err and "沒有輸出層" in err, err


# ---- hidden states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["encoder", "masked", "causal"])
def test_hidden_states_are_those_of_transformers(run, folders, which):
    from transformers import AutoModel, AutoTokenizer

    text = "天地[MASK]Night!"
    model, tokenizer, device = inference.load_model(folders[which], "cpu")
    found = inference.hidden_states(model, tokenizer, text, device)
    body, reader = (kind.from_pretrained(folders[which]) for kind in (AutoModel, AutoTokenizer))
    reader = reader if which == "encoder" else tokenizer  # that of bert-base-chinese is mended here
    with torch.no_grad():
        theirs = body.eval()(**reader(text, return_tensors="pt"), output_hidden_states=True)
    assert found["tokens"] == reader.convert_ids_to_tokens(reader(text)["input_ids"])
    assert found["last_hidden_state"].dtype == np.float32
    np.testing.assert_allclose(found["last_hidden_state"], theirs.last_hidden_state[0], atol=1e-5)
    assert len(found["layers"]) == len(theirs.hidden_states) == 3
    for layer, other in zip(found["layers"], theirs.hidden_states, strict=True):
        np.testing.assert_allclose(layer, other[0], atol=1e-5)
    code, out, _ = run(which, "--prompt", text, "--hidden_states", "--json")
    told = json.loads(out)
    assert code == 0 and told["tokens"] == found["tokens"] and told["prompt"] == text
    assert told["shape"] == [1, len(found["tokens"]), 32] and told["layers"] == [told["shape"]] * 3
    np.testing.assert_allclose(told["last_hidden_state"], found["last_hidden_state"], atol=1e-5)


def test_the_terminal_shows_shapes_and_the_beginning_of_every_tokens_vector(run, folders):
    model, tokenizer, device = inference.load_model(folders["masked"], "cpu")
    last = inference.hidden_states(model, tokenizer, "天地", device)["last_hidden_state"]
    code, out, _ = run("masked", "--prompt", "天地", "--hidden_states")
    assert code == 0 and "(1, 4, 32)" in out and "3 個（詞嵌入 1 個，2 層各 1 個）" in out
    lines = out.splitlines()[-4:]
    assert [line.split()[1] for line in lines] == ["[CLS]", "天", "地", "[SEP]"]
    for line, vector in zip(lines, last, strict=True):
        assert line.split()[2:] == [*(f"{x:.4f}" for x in vector[:4]), "…", f"{np.linalg.norm(vector):.4f}"]
    assert " 天" in run("causal", "--prompt", "天地玄黃", "--hidden_states")[1]  # not its bytes


def test_hidden_states_of_what_is_no_text_or_too_long(loaded, capsys):
    model, tokenizer, device = loaded
    for text, named in (("", "空的"), (3, "3"), ("\ud800", "UTF-8")):
        with pytest.raises(UserError, match=named):
            inference.hidden_states(model, tokenizer, text, device)
    found = inference.hidden_states(model, tokenizer, "天" * 300, device)
    assert len(found["tokens"]) == 128 and "128 個 token" in capsys.readouterr().err


def test_a_lora_adapter_is_part_of_the_vectors(model_dir, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForMaskedLM

    base = AutoModelForMaskedLM.from_pretrained(model_dir)
    torch.manual_seed(0)
    shape = LoraConfig(r=4, target_modules=["query", "value", "dense"], init_lora_weights=False)
    get_peft_model(base, shape).save_pretrained(tmp_path / "adapter")
    model, tokenizer, device = inference.load_model(tmp_path / "adapter", "cpu")
    tuned, plain = inference.embed(model, tokenizer, ["天地"], device), expected(model_dir, ["天地"])
    hidden = inference.hidden_states(model, tokenizer, "天地", device)["last_hidden_state"]
    np.testing.assert_allclose(tuned[0], hidden.mean(0), atol=1e-5)
    assert np.abs(tuned - plain).max() > 1e-4


def test_the_column_that_is_read_is_named_where_there_are_others(run, tmp_path):
    file = write_rows(tmp_path / "two.jsonl", [{"title": "天地", "text": "玄黃", "note": "日月"}] * 2)
    assert "讀 text 欄（要別的欄就用 --text_column）" in run("masked", "--embed", file, "--nearest", "天")[2]
    assert "讀 " not in run("masked", "--embed", file, "--nearest", "天", "--text_column", "note")[2]
    (tmp_path / "none.jsonl").write_text("")
    err = run("masked", "--embed", tmp_path / "none.jsonl", "--nearest", "天")[2]
    assert "none.jsonl：空的檔案" in err and ":0" not in err
