"""inference.py --draw: five figures from a configuration, with no weights and no foreign file touched."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoConfig

from finetune.demo import builtin
from finetune.reports.figure_files import NAMES

FILES = {f"{name}.svg" for name in NAMES}
BERT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs inference.main in an empty folder; returns (exit code, stdout, stderr)."""
    import inference

    monkeypatch.chdir(tmp_path)

    def run(*argv) -> tuple[int, str, str]:
        capsys.readouterr()
        code = inference.main(["--draw", "figures", *map(str, argv)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def bare(tmp_path):
    """A folder that holds a config.json and nothing else."""
    folder = tmp_path / "bare"
    AutoConfig.for_model("bert", **BERT).save_pretrained(folder)
    return folder


def test_without_a_model_all_is_drawn_from_default_configurations(run, tmp_path):
    code, out, err = run()
    assert code == 0 and "照 transformers 的預設設定畫" in err
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FILES
    assert all(f"figures/{name}.svg" in out for name in NAMES) and "109,514,298 個參數" in out


def test_a_config_alone_is_enough_and_json_holds_the_numbers(run, bare, tmp_path):
    code, out, err = run("--model_path", bare, "--json")
    facts = json.loads(out)
    assert code == 0 and tuple(facts) == NAMES
    for name in NAMES:
        assert (tmp_path / facts[name]["file"]).is_file()
    expected = AutoConfig.from_pretrained(bare)
    from transformers import BertForMaskedLM

    assert facts["bert"]["parameters"] == BertForMaskedLM(expected).num_parameters()
    assert facts["bert"]["parameters"] == sum(facts["bert"]["parts"].values())
    assert facts["gpt"]["configuration"] == "transformers GPT2Config() 的預設值"
    assert "bare" in (tmp_path / "figures/bert.svg").read_text(encoding="utf-8")


def test_figures_are_replaced_and_other_files_left(run, tmp_path, bare):
    assert run()[0] == 0
    (tmp_path / "figures/mine.txt").write_text("mine")
    before = (tmp_path / "figures/bert.svg").read_bytes()
    assert run("--model_path", bare)[0] == 0
    assert (tmp_path / "figures/bert.svg").read_bytes() != before
    assert (tmp_path / "figures/mine.txt").read_text() == "mine"
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FILES | {"mine.txt"}


@pytest.mark.parametrize("content", ["<svg/>", "", None])
def test_a_file_of_others_is_never_replaced(run, tmp_path, content):
    (tmp_path / "figures").mkdir()
    file = tmp_path / "figures/gpt.svg"
    file.mkdir() if content is None else file.write_text(content)
    code, _, err = run()
    assert code == 2 and "--draw figures 裡已有 gpt.svg" in err
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"gpt.svg"}
    assert content is None or file.read_text() == content


def test_a_file_in_the_place_of_the_folder_is_said_before_anything_is_loaded(run, tmp_path, monkeypatch):
    (tmp_path / "figures").write_text("mine")
    monkeypatch.setattr("finetune.predict.draw._subject", None)
    code, _, err = run()
    assert code == 2 and "--draw figures 是一個檔案，應為資料夾" in err


@pytest.mark.parametrize(
    "config, said",
    [
        (None, "沒有 config.json"),
        ("{", "config.json 讀不懂"),
        ('{"model_type": "zzz"}', "config.json 讀不懂"),
        ('{"model_type": "bert", "hidden_size": 31}', "建不出模型"),
        ('{"model_type": "bert", "num_hidden_layers": 100000}', "上限"),
    ],
)
def test_a_configuration_that_makes_no_model_is_a_message(run, tmp_path, config, said):
    (tmp_path / "odd").mkdir()
    if config is not None:
        (tmp_path / "odd/config.json").write_text(config)
    code, _, err = run("--model_path", "odd")
    assert code == 2 and said in err and "--model_path odd" in err and "Traceback" not in err
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("name", ["./nowhere", "http://localhost:1/v1"])
def test_a_model_that_has_no_configuration_to_read_is_refused(run, name):
    code, _, err = run("--model_path", name)
    assert code == 2 and name in err


def test_a_family_that_is_no_language_model_is_said_and_the_defaults_are_drawn(run, tmp_path):
    (tmp_path / "seeing").mkdir()
    (tmp_path / "seeing/config.json").write_text('{"model_type": "vit"}')
    code, out, err = run("--model_path", "seeing")
    assert code == 0 and "vit 不是這裡畫得出來的語言模型家族" in err and "BertConfig()" in out


@pytest.mark.slow
def test_what_a_run_trained_is_drawn_from_its_run_card(train, run, model_dir, tmp_path):
    builtin.write_labels(tmp_path / "labels.csv")
    code = train(
        "--task", "classify", "--dataset", tmp_path / "labels.csv", "--model_name_or_path", model_dir,
        "--cpu", "--max_steps", 2, "--lora_rank", 4, "--freeze", "embeddings,0",
        "--save_dir", tmp_path / "ck", "--output_dir", tmp_path / "run/model", base=False,
    )  # fmt: skip
    card = json.loads((tmp_path / "run/model/run_card.json").read_text(encoding="utf-8"))
    drawn = json.loads(run("--model_path", tmp_path / "run/model", "--json")[1])
    assert code == 0 and drawn["layers"]["trained"]["flags"] == "--freeze embeddings,0 --lora_rank 4"
    assert drawn["layers"]["trained"]["trained"] == card["parameters"]["trained"]
    svg = (tmp_path / "figures/layers.svg").read_text(encoding="utf-8")
    assert f"{card['parameters']['trained']:,}" in svg and "run/model" in svg


def test_an_adapter_without_a_configuration_of_its_own_is_drawn_as_its_base(run, bare, tmp_path):
    (tmp_path / "adapter").mkdir()
    words = {"base_model_name_or_path": str(bare), "peft_type": "LORA", "r": 4}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(words))
    code, out, _ = run("--model_path", "adapter", "--json")
    assert code == 0 and json.loads(out)["bert"]["class"] == "BertForMaskedLM"
    shutil.rmtree(bare)
    code, _, err = run("--model_path", "adapter")
    assert code == 2 and "--model_path adapter 的底模" in err
