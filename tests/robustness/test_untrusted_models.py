"""Files from strangers: a model, an adapter, a run card or an exam that was made to harm does not. Every
attack carries a payload that works: it would leave a file, and the tests see that the file is not there."""

from __future__ import annotations

import ast
import csv
import json
import pickle
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT,
    SUBJECTS,
    make_causal_dir,
    make_exam_dir,
    run_process,
    write_csv,
)
from forked import run_bare
from loopback_hub import LoopbackHub

import fine_tuning_llm
import inference
from finetune.models.run_card import RunCard
from finetune.models.streaming import Reply, ReplyStream
from finetune.prompts.exam import Template
from finetune.runtime import console, untrusted
from finetune.runtime.errors import RunError, UserError

SCRIPTS = ("inference", "training")


class Bomb:
    """Unpickled without care, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'w').write('owned')",)


@pytest.fixture
def marker(tmp_path) -> Path:
    """The file that every payload would leave; the payloads do work."""
    path = tmp_path / "owned"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    return path


@pytest.fixture
def run(tmp_path, exam_dir, monkeypatch, capsys):
    """Runs a script on a model. Returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def start(script: str, model, *more) -> tuple[int, str, str]:
        words = ["--prompt", "天[MASK]"] if script == "inference" and "--exam" not in more else []
        if script == "inference":
            code = inference.main(["--model_path", str(model), "--cpu", *words, *map(str, more)])
        else:
            argv = ["--max_steps", "1", "--cpu"]
            argv += [] if "--task" in more else ["--dataset", str(exam_dir), "--exam_limit", "2"]
            code = fine_tuning_llm.main(["--model", str(model), *argv, *map(str, more)])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return start


def refused(found: tuple[int, str, str], *says: str) -> None:
    code, out, err = found
    assert code == 2, err
    assert err.count("✗") == 1 and "Traceback" not in err and not out, err
    assert all(words in err for words in says), err


@pytest.fixture
def copied(model_dir, tmp_path) -> Path:
    """A model of one's own to spoil."""
    return shutil.copytree(model_dir, tmp_path / "stranger")


def edit(path: Path, **changes) -> None:
    """Changes a JSON object in a file."""
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(said | changes), encoding="utf-8")


def as_pickle(folder: Path, held: object = None) -> None:
    """Puts pytorch_model.bin in the place of model.safetensors, with its tensors and with `held`."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    torch.save(weights if held is None else weights | {"held": held}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


# ---- 1. pickles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_weights_that_are_only_a_pickle_are_refused_with_the_reason_and_the_flag(run, copied, marker, script):
    as_pickle(copied, Bomb(marker))
    refused(run(script, copied), "pytorch_model.bin", "可能夾帶程式", "--allow_pickle")
    assert not marker.exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("form", ["torch", "legacy", "bare", "index"])
def test_what_a_pickle_holds_beside_tensors_is_refused_and_not_run_though_pickles_are_allowed(
    run, copied, marker, script, form
):
    as_pickle(copied, Bomb(marker))
    file = copied / "pytorch_model.bin"
    if form == "legacy":
        torch.save({"held": Bomb(marker)}, file, _use_new_zipfile_serialization=False)
    elif form == "bare":
        file.write_bytes(pickle.dumps(Bomb(marker)))
    elif form == "index":
        file.rename(copied / "part.bin")
        edit(copied / "pytorch_model.bin.index.json", weight_map={"held": "part.bin"}, metadata={})
    refused(run(script, copied, "--allow_pickle"), "裡面不只有張量", "沒有執行")
    assert not marker.exists()


@pytest.mark.slow
def test_a_pickle_that_is_allowed_gives_the_same_weights(run, copied, model_dir):
    as_pickle(copied)
    mine = inference.load_model(copied, "cpu", allow_pickle=True)[0].state_dict()
    theirs = inference.load_model(model_dir, "cpu")[0].state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(UserError, match="--allow_pickle"):
        inference.load_model(copied, "cpu")
    assert run("inference", copied, "--allow_pickle")[1] == run("inference", model_dir)[1]
    assert run("training", copied, "--allow_pickle", "--lora_rank", 2, "--no_merge")[0] == 0
    trained = "my_bert_finetuned_model_hf_format"  # an adapter beside a base that is a pickle
    refused(run("inference", trained), "的底模", "--allow_pickle")
    code, out, _ = run("inference", trained, "--allow_pickle")
    assert code == 0 and "預測結果" in out


@pytest.mark.parametrize("script", SCRIPTS)
def test_shards_of_safetensors_that_are_pickles_by_name_are_refused(run, copied, marker, script):
    torch.save(Bomb(marker), copied / "part.bin")
    (copied / "model.safetensors").unlink()
    edit(copied / untrusted.INDEX, weight_map={"held": "part.bin"}, metadata={})
    refused(run(script, copied), "part.bin", "不是 safetensors")
    assert not marker.exists()


def test_an_adapter_that_is_a_pickle_is_refused_though_pickles_are_allowed(run, model_dir, tmp_path, marker):
    folder = tmp_path / "adapter"
    folder.mkdir()
    edit(folder / "adapter_config.json", base_model_name_or_path=str(model_dir), peft_type="LORA")
    torch.save(Bomb(marker), folder / "adapter_model.bin")
    for more in ((), ("--allow_pickle",)):
        refused(run("inference", folder, *more), "沒有 adapter_model.safetensors", "pickle")
    assert not marker.exists()


# ---- 2. code -----------------------------------------------------------------------------------------------

OWN_CODE = {
    "AutoConfig": "evil.EvilConfig", "AutoModelForMaskedLM": "evil.EvilModel", "AutoModel": "evil.EvilModel",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
}  # fmt: skip


def with_code(folder: Path, marker: Path) -> Path:
    """Gives a model code of its own, which would leave the marker when it is imported."""
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').write('owned')\n", encoding="utf-8")
    edit(folder / "config.json", auto_map=OWN_CODE)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": OWN_CODE["AutoTokenizer"]})
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_model_that_needs_code_of_its_own_is_refused_and_the_code_is_not_run(run, copied, marker, script):
    edit(with_code(copied, marker) / "config.json", model_type="evil")
    refused(run(script, copied), "auto_map", "'evil'", "一律不執行")
    assert not marker.exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_code_that_a_known_model_does_not_need_is_not_run_and_one_line_says_so(run, copied, marker, script):
    code, out, err = run(script, with_code(copied, marker))
    assert code == 0, err
    assert err.count("附帶的程式（auto_map）不執行") == 1 and out
    assert not marker.exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_attn_implementation": "someone/kernel"}, "someone/kernel"),
        ({"attn_implementation": "someone/kernel"}, "someone/kernel"),
        ({"text_config": {"_attn_implementation": "someone/kernel"}}, "someone/kernel"),
        ({"experts_implementation": "someone/kernel"}, "someone/kernel"),
        ({"transformers_weights": "../secret/model.safetensors"}, "transformers_weights"),
        ({"transformers_weights": ["x"]}, "transformers_weights"),
    ],
)
def test_a_configuration_that_asks_for_what_lies_elsewhere_is_refused(run, copied, script, changes, says):
    edit(copied / "config.json", **changes)
    refused(run(script, copied), says, "不載入")


def test_a_chat_template_that_reaches_for_python_is_refused_and_gets_nothing(run, tmp_path, marker):
    folder = make_causal_dir(tmp_path / "causal")
    reach = "{{ messages.__class__.__base__.__subclasses__() }}"
    globals_ = f"{{{{ cycler.__init__.__globals__.os.system('touch {marker}') }}}}"
    for template in (reach, globals_, "{{ 1 / 0 }}", "{% for a in messages %}{{ a.b.c.d }}{% endfor %}"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        refused(run("inference", folder), "對話樣板不接受")
        assert not marker.exists()


# ---- 3. paths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("where", ["../secret/", "absolute", "link/", "numbers"])
def test_shards_that_lie_outside_the_folder_are_refused(run, copied, model_dir, tmp_path, script, where):
    from safetensors import safe_open

    secret = shutil.copytree(model_dir, tmp_path / "secret")
    (copied / "model.safetensors").unlink()
    file = f"{where}model.safetensors"
    if where == "absolute":
        file = str(secret / "model.safetensors")
    elif where == "link/":
        (copied / "link").symlink_to(secret)
    with safe_open(secret / "model.safetensors", "pt") as held:
        shards = dict.fromkeys(held.keys(), 7 if where == "numbers" else file)
    edit(copied / untrusted.INDEX, weight_map=shards, metadata={})
    code, out, err = run(script, copied)
    assert code == 2 and not out and "Traceback" not in err and err.count("✗") == 1
    assert untrusted.INDEX in err and ("weight_map" if where == "numbers" else "在資料夾外面") in err


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_file", "../secret/vocab.txt"), ("tokenizer_file", "/etc/passwd"),
        ("merges_file", "a/../../b"),
        ("chat_template_file", "/etc/passwd"), ("fast_tokenizer_files", ["../../tokenizer.4.0.json"]),
        ("vocab_file", {"a": 1}),
    ],
)  # fmt: skip
def test_tokenizer_files_that_lie_outside_the_folder_are_refused(run, copied, script, key, value):
    edit(copied / "tokenizer_config.json", **{key: value})
    refused(run(script, copied), key, "資料夾外面")


def test_a_path_that_no_library_reads_does_not_spoil_an_honest_old_model(run, copied):
    edit(
        copied / "tokenizer_config.json",
        special_tokens_map_file="/home/someone/.cache/huggingface/a1b2",
        vocab_file=None,
    )
    assert run("inference", copied)[0] == 0


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "file",
    ["config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "run_card.json",
     "adapter_config.json", "generation_config.json"],
)  # fmt: skip
def test_a_link_that_leads_out_of_a_model_folder_is_refused(run, copied, tmp_path, script, file):
    outside = tmp_path / "private"
    outside.write_text("{}")
    if (copied / file).exists():
        (copied / file).rename(outside)
    (copied / file).symlink_to("../private")
    refused(run(script, copied), file, "連結", "../private")


def test_a_folder_of_links_and_links_within_a_folder_are_usable(run, copied, tmp_path):
    (copied / "config.json").rename(copied / "real.json")
    (copied / "config.json").symlink_to("real.json")
    (tmp_path / "named").symlink_to(copied)  # the person's own link to the folder
    assert run("inference", tmp_path / "named")[0] == 0
    (copied / "circle").symlink_to("circle")
    refused(run("inference", copied), "circle")


def cached(model: Path, home: Path) -> Path:
    """The model as the hub's cache keeps it. Returns the snapshot."""
    snapshot, blobs = home / "models--a--b/snapshots/c0ffee", home / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, blobs / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_hubs_own_cache_is_usable_as_a_folder(run, model_dir, tmp_path, script):
    snapshot = cached(model_dir, tmp_path)
    assert run(script, snapshot)[0] == 0
    (tmp_path / "models--x--y").mkdir()
    (tmp_path / "models--x--y/other").write_text("{}")
    (snapshot / "run_card.json").symlink_to("../../../models--x--y/other")  # another model's
    refused(run(script, snapshot), "run_card.json", "連結")


@pytest.mark.parametrize("attack", ["link", "index", "code", "adapter", "pickle"])
def test_the_base_that_an_adapter_names_is_looked_at_as_any_model(run, copied, tmp_path, marker, attack):
    assert run("training", copied, "--lora_rank", 2, "--no_merge")[0] == 0
    trained = tmp_path / "my_bert_finetuned_model_hf_format"
    if attack == "link":
        (copied / "extra.json").symlink_to("/etc/passwd")
    elif attack == "index":
        edit(copied / untrusted.INDEX, weight_map={"x": "/etc/passwd"})
    elif attack == "code":
        edit(with_code(copied, marker) / "config.json", model_type="evil")
    elif attack == "adapter":  # transformers would put it into the base without a word
        edit(copied / "adapter_config.json", base_model_name_or_path=str(copied))
    else:
        as_pickle(copied, Bomb(marker))
    refused(run("inference", trained), str(copied))
    assert not marker.exists()


@pytest.mark.parametrize(
    "base",
    ["../../etc", "/etc/passwd", "/etc", "", 7, None, ["x"], "x\x1b[31m", "a\nb", "x" * 300, "x" * 5000, "\0",
     "{0.__class__}", "%s%n", "http://127.0.0.1:9/x"],
)  # fmt: skip
def test_a_base_that_makes_no_sense_is_refused_in_one_message(run, model_dir, tmp_path, base):
    folder = tmp_path / "adapter"
    folder.mkdir()
    shutil.copy(model_dir / "model.safetensors", folder / "adapter_model.safetensors")
    edit(folder / "adapter_config.json", base_model_name_or_path=base, peft_type="LORA")
    refused(run("inference", folder))


@pytest.mark.slow
def test_an_adapter_cannot_have_a_module_imported(run, copied, tmp_path, marker, monkeypatch):
    assert run("training", copied, "--lora_rank", 2, "--no_merge")[0] == 0
    (tmp_path / "evil_core.py").write_text(f"open({str(marker)!r}, 'w').write('owned')\n")
    monkeypatch.syspath_prepend(tmp_path)
    more = {"megatron_config": {"a": 1}, "megatron_core": "evil_core"}
    more["auto_mapping"] = {"base_model_class": "X", "parent_library": "evil_core"}
    edit(tmp_path / "my_bert_finetuned_model_hf_format/adapter_config.json", **more)
    refused(run("inference", "my_bert_finetuned_model_hf_format"))
    assert not marker.exists()


# ---- the same from the hub ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", ["pickle", "evil pickle", "index", "code", "known code", "adapter", "kernel"]
)
def test_a_model_of_the_hub_can_do_no_more_than_a_folder(copied, model_dir, tmp_path, marker, attack):
    more, says = [], ()
    if attack == "pickle":
        as_pickle(copied, Bomb(marker))
        says = ("可能夾帶程式", "--allow_pickle")
    elif attack == "evil pickle":
        as_pickle(copied, Bomb(marker))
        more, says = ["--allow_pickle"], ("裡面不只有張量",)
    elif attack == "index":
        (copied / "model.safetensors").unlink()
        up = "../" * len(tmp_path.parts) + str(model_dir / "model.safetensors")
        edit(copied / untrusted.INDEX, weight_map={"x": up}, metadata={})
        says = (untrusted.INDEX, "資料夾外面")
    elif attack == "code":
        edit(with_code(copied, marker) / "config.json", model_type="evil")
        says = ("auto_map", "一律不執行")
    elif attack == "known code":
        with_code(copied, marker)
    elif attack == "adapter":
        edit(copied / "adapter_config.json", base_model_name_or_path=str(model_dir))
        says = ("LoRA",)
    else:
        edit(copied / "config.json", _attn_implementation="someone/kernel")
        says = ("someone/kernel",)
    words = [
        sys.executable,
        ROOT / "inference.py",
        "--model_path",
        "some/one",
        "--cpu",
        "--prompt",
        "天[MASK]",
    ]
    with LoopbackHub({"some/one": copied}, {}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = run_bare([*words, *more], tmp_path, HF_HUB_DISABLE_XET="1", **env)
        assert not any("convert" in path or "discussions" in path for path in hub.asked), hub.asked
    if attack == "known code":
        assert done.returncode == 0 and done.stderr.count("附帶的程式（auto_map）不執行") == 1, done.stderr
    else:
        refused((done.returncode, done.stdout, done.stderr), *says)
    assert not marker.exists()


# ---- 4. run cards ------------------------------------------------------------------------------------------


def give_card(folder: Path, **changes) -> None:
    RunCard().write(folder)
    edit(folder / "run_card.json", **changes)


HOSTILE_TEMPLATES = [
    {"option": "（{letter}）{text}{0.__class__.__init__.__globals__}"},
    {"plain": "{stem.__class__}{stem}{blank}"}, {"plain": "{blank}{stem}"}, {"plain": "%s%n"},
    {"neutral": "{subject!r}{subject}{blank}"}, {"listed": "{stem}{options}{blank}{blank}"},
    {"asked": ["{stem}", "{options}"]}, {"choice": 7}, {"choice": None}, {"choice": {"{letter}": "{text}"}},
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("changes", HOSTILE_TEMPLATES)
def test_a_template_with_places_of_its_own_is_refused_and_nothing_in_it_is_evaluated(
    run, copied, script, changes
):
    give_card(copied, template=Template().as_dict() | changes)
    refused(run(script, copied), "run_card.json", "樣板")


ODD = (None, True, -5, 10**30, 1.5, "x\x1b[31m", "../../etc/passwd", [], {}, [[]], [7], ["x"], [{}],
       {"a": []},
       {"seed": "x"}, {"seed": 10**40}, [{"stage": 1}], [{"stage": "base"}], [{"stage": "sft", "steps": "x"}],
       [{"step": 10**400}], [{"step": 1, "train_loss": "x"}], [{"step": 1, "train_loss": [1]}])  # fmt: skip
HARMLESS = {  # what is odd, and yet what such a part may hold
    "objective": ("x\x1b[31m", "../../etc/passwd"), "dataset": ("x\x1b[31m", "../../etc/passwd"),
    "base_model": ("../../etc/passwd",), "parameters": ({},), "flags": ({}, {"a": []}),
    "fingerprints": ([], ["x"]),
    "sketches": ({}, {"seed": "x"}), "lineage": ([],), "history": ([],), "snapshot": ({},),
}  # fmt: skip
OBJECTS = ("results", "growth", "labels", "metrics", "versions", "template")  # what they lack is as usual


@pytest.mark.parametrize("part", sorted({*RunCard.__dataclass_fields__, "format"}))
def test_a_part_of_a_run_card_of_the_wrong_kind_is_refused_in_one_message(run, copied, part, monkeypatch):
    for odd in ODD:
        give_card(copied, **{part: odd})
        found = run("inference", copied)
        if (odd in HARMLESS.get(part, ())) or (part in OBJECTS and isinstance(odd, dict)):
            assert found[0] == 0, (odd, found[2])
        else:
            refused(found, "run_card.json")
        assert "\x1b" not in found[1] + found[2]


@pytest.mark.parametrize("base", ["../../etc", "/etc/passwd", "/etc", "", "{0.__class__}", "x" * 200])
def test_the_base_of_a_run_card_is_no_way_to_other_files(run, copied, exam_dir, base):
    give_card(copied, base_model=base, dataset="/etc/passwd")
    sit = ["--exam", exam_dir, "--compare_with", "base", "--exam_limit", 2]
    refused(run("inference", copied, *sit), "--compare_with")


@pytest.mark.parametrize(
    "history",
    [[{"step": 0}], [{"step": 0, "train_loss": 0.0}],
     [{"step": 5, "train_loss": 1e308, "validation_loss": -1e308}],
     [{"step": 2**53, "validation_accuracy": float("nan")}], [{"step": 3, "train_loss": float("inf")}],
     [{"step": 1, "validation_accuracy": 1e308}, {"step": 1, "validation_macro_f1": 9**30}]],
)  # fmt: skip
def test_figures_of_a_strangers_card_spoil_no_report(run, copied, exam_dir, history):
    give_card(
        copied, history=history, step=2**53, lineage=[{"stage": "base", "model": "x"}], growth={"sets": 7}
    )
    code, _, err = run("inference", copied, "--exam", exam_dir, "--exam_limit", 3, "--report", "r")
    if any(isinstance(value, int) and value > 2**53 for entry in history for value in entry.values()):
        return refused((code, "", err), "history")
    assert code == 0, err
    assert "<html" in Path("r/index.html").read_text(encoding="utf-8")
    return None


def test_a_strangers_card_is_looked_at_before_a_model_is_trained_further(run, copied):
    for odd in ({"fingerprints": [["x"]]}, {"lineage": "x"}, {"sketches": {"x": "\x1b"}}, {"pool": 7}):
        give_card(copied, **odd)
        refused(run("training", copied), "run_card.json")


# ---- 5. reports --------------------------------------------------------------------------------------------

HOSTILE = """<script>alert(1)</script></script>"><img src=x onerror=alert(2)>' onmouseover='x
[a](javascript:alert(3))
{{ 7 * 7 }}<svg onload=alert(4)>&lt;b&gt;`code`"""


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_a_report_shows_what_an_exam_and_a_model_hold_and_runs_none_of_it(run, model_dir, tmp_path):
    rows = [[f"{HOSTILE}{i}？", f"{HOSTILE}甲{i}", "地", "javascript:alert(5)", "宇", "ABCD"[i % 4], HOSTILE]
            for i in range(9)]  # fmt: skip
    write_csv(tmp_path / "exam.csv", rows, ("question", "A", "B", "C", "D", "answer", "subject"))
    name = """<script>alert(1)<"><img src=x onerror=alert(2)>[a](javascript:alert(3))"""
    model = shutil.copytree(model_dir, tmp_path / name)
    give_card(model, base_model=name, dataset=HOSTILE, history=[{"step": 1, "train_loss": 1.0}])
    words = ["--exam", "exam.csv", "--report", "r", "--compare_with", model_dir]
    code, _, err = run("inference", model, *words)
    assert code == 0, err
    page = Page((tmp_path / "r/index.html").read_text(encoding="utf-8"))
    ours = {"html", "head", "meta", "title", "style", "body", "header", "main", "nav", "article", "section",
            "h1", "h2", "h3", "h4", "p", "a", "ul", "ol", "li", "dl", "dt", "dd", "div", "span", "strong",
            "b", "i", "small", "wbr", "table", "tr", "th", "td", "details", "summary", "figure", "figcaption",
            "svg", "path", "text", "circle"}  # fmt: skip
    assert page.tags <= ours, page.tags - ours
    assert not any(key.startswith("on") for key, _ in page.attributes)
    places = [value for key, value in page.attributes if key in ("href", "src", "action", "data", "srcset")]
    assert all(place.startswith("#") for place in places)
    assert HOSTILE in page.text and name in page.text and "49" not in page.text.split("{{ 7 * 7 }}")[0][:99]
    for file in ("report.md",):
        text = (tmp_path / "r" / file).read_text(encoding="utf-8")
        assert (
            "<script" not in text and "<img" not in text and "<svg" not in text and "](javascript" not in text
        )


def test_a_model_card_shows_what_the_base_is_called_and_nothing_more(run, model_dir, tmp_path):
    name = "`<script>alert(1)<`[a](javascript:alert(3))"
    model = shutil.copytree(model_dir, tmp_path / name)
    from finetune.models.run_card import weights_hash

    stages = [{"stage": "base", "model": HOSTILE},
              {"stage": "mlm", "dataset": HOSTILE, "steps": 1, "sha256": weights_hash(model)}]  # fmt: skip
    give_card(model, lineage=stages)
    (tmp_path / "texts.txt").write_text("\n\n".join("天地玄黃宇宙洪荒。" * 30 + str(i) for i in range(30)))
    code, _, err = run("training", model, "--task", "mlm", "--dataset", "texts.txt")
    assert code == 0, err
    for file in ("my_bert_finetuned_model_hf_format/README.md", "report/report.md"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        bare = re.sub(r"`[^`\n]*`", "", text)  # a code span shows what it holds
        for words in ("<script", "<img", "<svg", "](javascript"):
            assert words not in bare, (file, words)


# ---- 6. spreadsheets ---------------------------------------------------------------------------------------

FORMULAS = ['=cmd|"/c calc"!A1', "=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "-5%", "=", "-"]
NUMBERS = ["-5", "+3", "-0.5", "-.5", "+1e9", "7", "-5."]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_no_text_in_a_table_can_start_a_formula_and_numbers_stay_numbers(run, model_dir, tmp_path, suffix):
    texts = [*FORMULAS, *NUMBERS, "'x", "a=1", "天"]
    with (tmp_path / "in.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": text, "prompt": f"{text}天[MASK]"}) + "\n" for text in texts)
    source = ["--input", "in.jsonl", "--output", f"out{suffix}"]
    assert inference.main(["--model_path", str(model_dir), "--cpu", *source]) == 0
    with (tmp_path / f"out{suffix}").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","))
    assert [row["id"] for row in rows] == [f"'{text}" if text in FORMULAS else text for text in texts]
    assert all(
        cell[:1] not in tuple("=+-@＝\t\r") or cell in NUMBERS for row in rows for cell in row.values()
    )
    assert [row["row"] for row in rows] == [str(i) for i in range(1, len(texts) + 1)]
    assert all(json.loads(row["scores"]) for row in rows)
    again = ["--input", f"out{suffix}", "--output", "again.jsonl"]  # what we wrote can be asked again
    assert inference.main(["--model_path", str(model_dir), "--cpu", *again]) == 0
    seen = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert not any(row["error"] for row in seen) and [row["id"] for row in seen] == [
        row["id"] for row in rows
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_tables_that_no_spreadsheet_runs_hold_every_text_as_it_is(tmp_path, suffix):
    from finetune.data.tables import read_table, write_table

    texts = [*FORMULAS, *NUMBERS]
    write_table(tmp_path / f"x{suffix}", ({"id": text} for text in texts), {"id": "text"}, suffix)
    assert [row["id"] for _, row in read_table(tmp_path / f"x{suffix}")] == texts


def test_the_head_of_a_table_can_start_no_formula(tmp_path):
    from finetune.data.tables import write_table

    write_table(tmp_path / "x.csv", [{"=1+1": -5, "n": "-5"}], {"=1+1": "whole", "n": "text"}, ".csv", False)
    assert (tmp_path / "x.csv").read_text().splitlines() == ["'=1+1,n", "-5,-5"]


# ---- 7. the terminal ---------------------------------------------------------------------------------------

OBEYED = (
    "\x1b]0;owned\x07\x1b[31m\x1b[2J\r\b\x00\x7f\x85\x9b2J\u061c\u200e\u2028\u2029\u202a\u202e\u2066\u2069"
)
CONTROLS = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u061c\u200e\u200f\u2028\u2029",
            *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"} - {"\n", "\t"}  # fmt: skip


def is_plain(*texts: str) -> bool:
    return not CONTROLS & set("".join(texts))


def test_what_a_terminal_obeys_is_shown_and_all_else_stays():
    assert console.plain("a\x1b[31m\r\x9b\u202e\u2028\udc80") == "a\\x1b[31m\\x0d\\x9b\\u202e\\u2028\\udc80"
    same = "天地 玄黃\n\t👨\u200d👩 é 　，。…\\x1b"
    assert console.plain(same) == same and console.plain("a\n\tb", lines=False) == "a\\n\\tb"
    assert is_plain(console.plain("".join(CONTROLS)), console.as_json({"".join(CONTROLS): "".join(CONTROLS)}))
    assert json.loads(console.as_json([OBEYED, "天\udc80"])) == [OBEYED, "天\udc80"]


@pytest.mark.parametrize("error", [UserError, RunError, ValueError, lambda text: OSError(2, text, text)])
@pytest.mark.parametrize("debug", [False, True])
def test_an_error_cannot_tell_the_terminal_anything(capsys, error, debug):
    def fail():
        raise error(f"{OBEYED}\n✗ 假的")

    assert console.run(fail, debug) in (1, 2)
    console.log(OBEYED)
    console.print_result(OBEYED)
    seen = capsys.readouterr()
    assert is_plain(seen.out, seen.err) and "\\x1b]0;owned" in seen.err
    if not debug:
        assert [line for line in seen.err.splitlines() if line.startswith("✗")].__len__() == 1


@pytest.mark.parametrize(
    "argv",
    [["--prompt", f"{OBEYED}[MASK]"],
     ["--question", f"天{OBEYED}？", "--options", f"A:地{OBEYED} B:玄"],
     ["--input", f"{OBEYED}.csv"], ["--input", f"{OBEYED}.csv", "--output", "x.csv"],
     ["--exam", f"./{OBEYED}"], [f"--{OBEYED}"], ["--top_k", OBEYED], ["--exam", "odd.csv"],
     ["--inspect", "odd.csv"], ["--inspect", "odd.csv", "--json"], ["--prompt", f"{OBEYED}[MASK]", "--json"]],
)  # fmt: skip
def test_words_file_names_and_rows_reach_the_terminal_as_text(model_dir, tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{OBEYED.replace(chr(0), '')}.csv").write_text("x")
    rows = [[f"天{OBEYED.replace(chr(0), '')}？", "地", "玄", "黃", "宇", "A"]] * 2
    write_csv(tmp_path / "odd.csv", rows)
    assert inference.main(
        ["--model_path", str(model_dir), "--cpu", *(a.replace("\0", "") for a in argv)]
    ) in (0, 2)
    seen = capsys.readouterr()
    assert is_plain(seen.out, seen.err) and "Traceback" not in seen.err
    if "--json" in argv:
        json.loads(seen.out.splitlines()[-1])


def test_the_words_of_a_models_vocabulary_and_the_names_of_its_labels_reach_the_terminal_as_text(
    tmp_path, monkeypatch, capsys
):
    from conftest import make_model_dir, make_vocabulary
    from transformers import AutoConfig, AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    vocabulary = make_vocabulary()
    odd = [f"{word}\x1b[31m\u202e\x9b" if len(word) == 1 and word >= "a" else word for word in vocabulary]
    odd[odd.index("天\x1b[31m\u202e\x9b")] = "天"
    model = make_model_dir(tmp_path / "odd", vocabulary=odd)
    for more in ([], ["--json"]):
        assert (
            inference.main(
                ["--model_path", str(model), "--cpu", "--prompt", "天[MASK]", "--top_k", "99", *more]
            )
            == 0
        )
        seen = capsys.readouterr()
        assert is_plain(seen.out, seen.err)
    assert "\\u001b[31m" in seen.out or "\\u202e" in seen.out
    config = AutoConfig.from_pretrained(model)
    config.id2label = {0: f"正{OBEYED}\n  1. 假的", 1: f"負{OBEYED}"}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
    typed = iter(["天地", "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    for words in (["--prompt", "天地"], ["--prompt", "天地", "--json"], []):
        assert inference.main(["--model_path", str(model), "--cpu", *words]) == 0
        seen = capsys.readouterr()
        assert is_plain(seen.out, seen.err) and "owned" in seen.out
        assert not any(line.startswith("  1. 假的") for line in seen.out.splitlines())


def test_what_a_causal_model_says_reaches_the_terminal_as_text_with_its_own_lines(
    qwen_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    pieces = ["甲\x1b", "]0;owned\x07", "\n\t乙", OBEYED, "丙"]
    monkeypatch.setattr("finetune.predict.causal.Generator.stream", lambda *_: ReplyStream(pieces))
    monkeypatch.setattr(
        "finetune.predict.causal.Generator.generate", lambda *_, **__: [Reply("".join(pieces))]
    )
    typed = iter(["你好", f"temperature {OBEYED}", "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    words = ["--model_path", str(qwen_dir), "--cpu"]
    for more in (["--prompt", "天"], [], ["--prompt", "天", "--json"]):
        assert inference.main([*words, *more]) == 0
        seen = capsys.readouterr()
        assert is_plain(seen.out, seen.err)
        if "--json" in more:
            assert json.loads(seen.out)["response"] == "".join(pieces).strip()
        else:
            assert "甲\\x1b]0;owned\\x07\n\t乙\\x1b]0;owned\\x07" in seen.out and "丙" in seen.out


def test_a_progress_bar_passes_no_name_on_to_the_terminal(model_dir, exam_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rival = shutil.copytree(model_dir, tmp_path / "rival\x1b]0;owned\x07\u202e")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    words = ["--exam", str(exam_dir), "--exam_limit", "3", "--compare_with", str(rival), "--report", "r"]
    assert inference.main(["--model_path", str(model_dir), "--cpu", *words]) == 0
    seen = capsys.readouterr()
    assert not {"\x07", "\u202e"} & set(seen.out + seen.err) and "\x1b]" not in seen.out + seen.err
    assert "rival\\x1b]0;owned" in seen.err  # it was a bar that named it


def test_what_a_training_run_prints_of_its_rows_is_text(copied, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = make_exam_dir(tmp_path / "e\x1b[31m\x9b", dev=3, val=3, test=3, subjects=SUBJECTS[:1])
    odd = "天\x1b]0;owned\x07\u202e玄？"
    rows = [[odd, f"地{i}", "玄", "黃", odd, "A"] for i in range(3)]
    write_csv(folder / f"{SUBJECTS[0]}_dev.csv", rows)
    words = [
        "--model",
        str(copied),
        "--dataset",
        str(folder),
        "--cpu",
        "--max_steps",
        "1",
        "--show_examples",
        "3",
    ]
    for more in ([], ["--dry_run"], ["--preview_masks", "3"]):
        assert fine_tuning_llm.main([*words, *more]) == 0
        seen = capsys.readouterr()
        assert is_plain(seen.out, seen.err), more


# ---- 8. what the code never calls --------------------------------------------------------------------------

CALLS = {  # and why no file may call it
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "joblib.load", "marshal.loads", "shelve.open", "dill.load", "cloudpickle.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput", "importlib.import_module",
}  # fmt: skip
EXCUSED = {  # (file, call) -> why it does no harm there
    (
        "finetune/runtime/distributed.py",
        "pickle.loads",
    ): "of what it has just pickled, to see whether an error can travel",
    ("finetune/predict/abilities.py", "importlib.import_module"): "of modules in a table of ours",
    ("finetune/reports/row_report.py", "importlib.import_module"): "of modules in a table of ours",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def found_calls(path: Path) -> list[tuple[str, int]]:
    """Calls in a file that may run what a stranger wrote, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [(name, node.lineno) for name in names & CALLS]
        if not isinstance(node, ast.Call):
            continue
        name, given = dotted(node.func), {word.arg: word.value for word in node.keywords}
        set_to = {key: getattr(value, "value", "?") for key, value in given.items()}
        if name in CALLS:
            found.append((name, node.lineno))
        if name == "torch.load" and set_to.get("weights_only") is not True:
            found.append(("torch.load without weights_only=True", node.lineno))
        if name in ("numpy.load", "np.load") and set_to.get("allow_pickle", False) is not False:
            found.append((name, node.lineno))
        if set_to.get("shell", False) is not False:
            found.append(("shell=True", node.lineno))
        if set_to.get("trust_remote_code", False) is not False:
            found.append(("trust_remote_code", node.lineno))
        if "autoescape" in given and not escapes(given["autoescape"]):
            found.append(("autoescape off", node.lineno))
    return found


def escapes(value: ast.expr) -> bool:
    """Whether it is True, or `select_autoescape` that escapes what has no extension of Markdown."""
    if isinstance(value, ast.Call) and dotted(value.func) == "select_autoescape":
        options = {word.arg: ast.literal_eval(word.value) for word in value.keywords}
        return options.get("default") is True and options.get("disabled_extensions") == ("md.j2",)
    return getattr(value, "value", "?") is True


@pytest.mark.slow
def test_no_file_starts_a_shell_evaluates_text_unpickles_or_trusts_remote_code():
    files = [*sorted((ROOT / "finetune").rglob("*.py")), ROOT / "inference.py", ROOT / "fine_tuning_llm.py"]
    for path in files:
        name = str(path.relative_to(ROOT))
        calls = [call for call in found_calls(path) if (name, call[0]) not in EXCUSED]
        assert not calls, (name, calls)


def test_what_looks_for_such_calls_finds_them(tmp_path):
    bad = tmp_path / "bad.py"
    for line in ("eval(x)", "import os\nos.system(x)", "torch.load(x)", "torch.load(x, weights_only=False)",
                 "run(x, shell=True)", "yaml.load(x)", "pickle.loads(x)", "from pickle import loads",
                 "f(trust_remote_code=True)", "f(trust_remote_code=y)",
                 "Environment(autoescape=False)", "Environment(autoescape=f)",
                 "Environment(autoescape=select_autoescape())"):  # fmt: skip
        bad.write_text(line)
        assert found_calls(bad), line
    bad.write_text(
        "torch.load(x, weights_only=True)\nyaml.safe_load(x)\nf(trust_remote_code=False)\nmodel.eval()"
    )
    assert not found_calls(bad)


def test_only_the_files_that_must_import_pickle():
    """runtime/distributed.py pickles an error to see whether it can travel between ranks, models/loading.py
    names the unpickler's error."""
    files = [*sorted((ROOT / "finetune").rglob("*.py")), ROOT / "inference.py", ROOT / "fine_tuning_llm.py"]
    users = {str(path.relative_to(ROOT / "finetune")) for path in files if "pickle" in imported(path)}
    assert users <= {"runtime/distributed.py", "models/loading.py", "training/deepspeed_files.py"}


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def test_looking_at_a_strangers_folder_needs_no_library():
    heavy = "{'torch', 'numpy', 'transformers'}"
    code = f"import sys; from finetune.runtime import untrusted; assert not {heavy} & set(sys.modules)"
    done = run_process([sys.executable, "-c", code], ROOT)
    assert done.returncode == 0, done.stderr
