"""Hold our prompts and log-likelihoods against lm-evaluation-harness itself: `make parity`.

    make parity                          # on generated questions
    make parity EXAM=path/to/tmmluplus   # on the questions of a folder in TMMLU+'s layout

lm-eval is installed into an environment of its own, and runs its own task `tmmluplus` on the same rows; only
where the rows come from is changed. The model is small and random, its tokenizer the first 32,768 entries of
Mistral's Tekken. For 0-shot and 5-shot, raw, chat and multiturn, it prints how many prompts are the same byte
for byte, the largest difference of a log-likelihood, and how many answers are the same where the best two
differ by more than that. It fails where a prompt differs, a log-likelihood by 1e-4, or such an answer.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 32_768
TOLERANCE = 1e-4  # nats
EXAMPLES = 5  # of a subject
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# name, --num_fewshot, --prompt_format, --fewshot_as_multiturn
CASES = (
    ("0-shot raw", 0, "raw", False), ("5-shot raw", 5, "raw", False), ("0-shot chat", 0, "chat", False),
    ("5-shot chat", 5, "chat", False), ("5-shot multiturn", 5, "chat", True),
)  # fmt: skip


# ---- run by the environment of lm-eval: a model, and lm-eval's own answers ---------------------------------


def make_model(folder: Path) -> None:
    """Write a small random Llama with a real tokenizer that adds BOS."""
    import mistral_common
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    data = Path(mistral_common.__file__).parent / "data/tekken_240911.json"
    tekken = json.loads(data.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{row['token_bytes']} {row['rank']}" for row in tekken["vocab"][:TOKENS]]
    (folder / "tekken.tiktoken").write_text("\n".join(lines))
    assert base64.b64decode(tekken["vocab"][65]["token_bytes"]) == b"A"
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    converter = TikTokenConverter(
        str(folder / "tekken.tiktoken"), pattern=tekken["config"]["pattern"], extra_special_tokens=special
    )
    raw = converter.converted()
    raw.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", raw.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=CHATML,
        additional_special_tokens=special[2:],
    )  # fmt: skip
    (folder / "tekken.tiktoken").unlink()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=16_384, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def subjects_of(folder: Path) -> list[str]:
    """Return the subjects of which a folder has rows to ask."""
    return sorted(file.name.removesuffix("_test.json") for file in folder.glob("*_test.json"))


def ask_lm_eval(settings: dict) -> None:
    """Run lm-eval's tmmluplus on the rows of a folder; write what it asked and computed, by question."""
    import lm_eval
    import yaml
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    work = Path(settings["work"])
    originals = Path(lm_eval.__file__).parent / "tasks/tmmluplus/default"
    (work / "tasks").mkdir()
    for rows in ("all", "after examples"):
        for subject in subjects_of(work / rows):
            files = {split: str(work / rows / f"{subject}_{split}.json") for split in ("train", "test")}
            original = originals / f"tmmluplus_{subject}.yaml"
            task = {
                "include": str(original), "task": f"{rows}/{subject}", "tag": None, "dataset_path": "json",
                "dataset_name": None, "dataset_kwargs": {"data_files": files},
            }  # fmt: skip
            if not original.exists():  # a subject of another exam: in the words of the others
                task["include"] = str(originals / "tmmluplus_physics.yaml")
                task["description"] = f"以下為{subject}的單選題，請提供正確答案的選項。\n\n"
            path = work / f"tasks/{rows} {subject}.yaml"
            path.write_text(yaml.safe_dump(task, allow_unicode=True))
    model = HFLM(str(work / "model"), dtype="float32", batch_size=4, device="cpu", max_length=16_384)
    manager = TaskManager(include_path=str(work / "tasks"), include_defaults=False)
    for name, shots, form, multiturn in settings["cases"]:
        rows = "after examples" if shots else "all"
        tasks = [f"{rows}/{subject}" for subject in subjects_of(work / rows)]
        if not tasks:
            continue
        results = lm_eval.simple_evaluate(
            model, tasks=tasks, num_fewshot=shots, task_manager=manager, log_samples=True,
            apply_chat_template=form == "chat", fewshot_as_multiturn=multiturn, bootstrap_iters=0,
        )  # fmt: skip
        with (work / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            for task in tasks:
                for row in sorted(results["samples"][task], key=lambda row: row["doc_id"]):
                    record = {
                        "subject": task.split("/")[1], "number": row["doc_id"],
                        "prompt": row["arguments"][0][0], "scores": [pair[0][0] for pair in row["resps"]],
                    }  # fmt: skip
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")


# ---- run by ours -------------------------------------------------------------------------------------------


def made_up_rows() -> dict[str, list[dict]]:
    """Make questions in TMMLU+'s columns, with white space and line breaks at the ends of their cells."""
    rng = random.Random(0)
    words = ["光合作用", "葉綠體", "民法第184條", "DNA", "x²+1", "「以上皆是」", "3.14", "NaCl", "臺灣"]
    ends = ["", "", "", " ", "\n", "　"]

    def row() -> dict:
        stem = rng.choice(ends) + "".join(rng.choices(words, k=9)) + rng.choice(ends)
        options = {letter: "".join(rng.choices(words, k=3)) + rng.choice(ends) for letter in "ABCD"}
        return {"question": stem, **options, "answer": rng.choice("ABCD")}

    subjects = ("physics", "tve_design", "education_(profession_level)", "accounting")
    return {subject: [row() for _ in range(EXAMPLES + 20)] for subject in subjects}


def rows_of(exam: str) -> dict[str, list[dict]]:
    """Read the four-option questions of a folder by subject, dev rows first."""
    sys.path.insert(0, str(ROOT))
    from finetune.data.exam import read_exam

    rows: dict[str, list[dict]] = {}
    questions = read_exam(exam, on_bad_rows="skip").questions
    for split in ("train", "validation", "test"):
        for question in questions.get(split, ()):
            if len(question.options) == 4:
                options = dict(zip("ABCD", question.options, strict=True))
                row = {"question": question.stem, **options, "answer": "ABCD"[question.answer]}
                rows.setdefault(question.subject, []).append(row)
    return rows


def write_rows(rows: dict[str, list[dict]], work: Path) -> None:
    """Write the rows for both sides: json for lm-eval (its csv reader would guess types), jsonl for us.

    The first EXAMPLES rows of a subject are its examples. `all` asks them too, without examples.
    """
    for name, first in (("all", 0), ("after examples", EXAMPLES)):
        (work / name).mkdir()
        (work / f"{name} for us").mkdir()
        for subject, part in rows.items():
            if len(part) <= first:
                continue
            for split, chosen in (("train", part[:EXAMPLES]), ("test", part[first:])):
                (work / name / f"{subject}_{split}.json").write_text(json.dumps(chosen, ensure_ascii=False))
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
                file = f"{subject}_{'dev' if split == 'train' else split}.jsonl"
                (work / f"{name} for us" / file).write_text(lines)


def ask_ours(work: Path, case: tuple) -> list[dict]:
    """Evaluate the same model by inference.py. Returns the records of predictions.jsonl."""
    name, shots, form, multiturn = case
    report = work / f"report {name}"
    command = [
        sys.executable, ROOT / "inference.py", "--model_path", work / "model",
        "--exam", work / ("after examples for us" if shots else "all for us"),
        "--protocol", "lm-eval", "--num_fewshot", shots, "--prompt_format", form, "--precision", "fp32",
        "--fewshot_as_multiturn", str(multiturn).lower(), "--log_prompts", "--skip_option_only", "--cpu",
        "--report", report,
    ]  # fmt: skip
    with (work / "ours.log").open("a") as log:
        subprocess.run([*map(str, command)], check=True, stdout=log, stderr=log)
    with (report / "predictions.jsonl").open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def compare(ours: list[dict], theirs: list[dict]) -> dict:
    """Count what is the same."""
    pairs = {(row["subject"], row["number"]): row for row in theirs}
    same = checked = agreed = 0
    largest = 0.0
    numbers: dict[str, int] = {}
    for row in ours:
        number = numbers[row["subject"]] = numbers.get(row["subject"], -1) + 1
        other = pairs[row["subject"], number]
        same += row["prompt"] == other["prompt"]
        gaps = [abs(a - b) for a, b in zip(row["scores"], other["scores"], strict=True)]
        largest = max(largest, *gaps)
        second, first = sorted(other["scores"])[-2:]
        if first - second > TOLERANCE:
            checked += 1
            agreed += row["prediction"] == "ABCD"[other["scores"].index(first)]
    return {"n": len(ours), "same_prompts": same, "largest": largest, "checked": checked, "agreed": agreed}


def main() -> int:
    """Run both sides and print the comparison. Returns 1 where they differ."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--lm_eval", required=True, help="python of the environment that has lm-eval")
    parser.add_argument("--exam", default="", help="folder in TMMLU+'s layout; else generated questions")
    flags = parser.parse_args()
    work = Path(mkdtemp(prefix="parity"))
    rows = rows_of(flags.exam) if flags.exam else made_up_rows()
    write_rows(rows, work)
    settings = {"work": str(work), "cases": CASES}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with (work / "lm_eval.log").open("w") as log:
        for step in ("model", "ask"):
            command = [flags.lm_eval, __file__, step, json.dumps(settings)]
            if subprocess.run(command, env=environment, stdout=log, stderr=log).returncode:
                print((work / "lm_eval.log").read_text()[-2000:])
                return 1
    print(f"{sum(map(len, rows.values()))} questions of {len(rows)} subjects; files: {work}", flush=True)
    failed = False
    for case in CASES:
        if case[1] and not subjects_of(work / "after examples"):
            print(f"{case[0]:17} no subject has more than {EXAMPLES} rows")
            continue
        with (work / f"{case[0]}.jsonl").open(encoding="utf-8") as stream:
            theirs = [json.loads(line) for line in stream]
        found = compare(ask_ours(work, case), theirs)
        print(
            f"{case[0]:17} same prompts {found['same_prompts']}/{found['n']}   largest difference "
            f"{found['largest']:.1e} nats   same answers {found['agreed']}/{found['checked']}", flush=True
        )  # fmt: skip
        failed = failed or found["same_prompts"] < found["n"] or found["agreed"] < found["checked"]
        failed = failed or found["largest"] > TOLERANCE
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["model"]:
        make_model(Path(json.loads(sys.argv[2])["work"]) / "model")
    elif sys.argv[1:2] == ["ask"]:
        ask_lm_eval(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
