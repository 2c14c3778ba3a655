"""Use a masked language model: fill [MASK], answer multiple-choice questions.

    python inference.py --prompt "今天天氣很[MASK]。"
    python inference.py --question "太陽系最大的行星是？" --options "A:地球 B:木星 C:火星"
    python inference.py                              # neither: ask and answer in the terminal

Order: 1 flags, 2 loading, 3 the two questions one can ask, 4 the terminal, 5 main.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from finetune import cli
from finetune.cli import MODEL_FOLDER
from finetune.errors import UserError
from finetune.prompts import METHODS, ORDERS

# ---- 1. flags ----------------------------------------------------------------------------------------------


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="inference.py", usage="python inference.py [旗標]", description="填空與選擇題作答"
    )
    add = parser.add_argument_group("模型").add_argument
    add("--model_path", default=MODEL_FOLDER, help="模型資料夾或 hub 上的名稱（預設 %(default)s）")
    add("--cpu", action="store_true", help="不用 GPU")
    add(
        "--precision",
        type=cli.one_of("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto｜fp32｜bf16｜fp16；auto 是 fp32",
    )
    add = parser.add_argument_group("填空").add_argument
    add("--prompt", help="一句話，[MASK] 是空格；沒有就加在句尾")
    add("--top_k", type=cli.whole(1), default=5, help="列出前幾名（預設 5）")
    add = parser.add_argument_group("選擇題").add_argument
    add("--question", help="題目")
    add("--options", help='選項，例如 "A:地球 B:木星 C:火星"')
    add(
        "--scoring",
        type=cli.one_of("auto", *METHODS),
        default="auto",
        help="auto：照模型學的方式，沒有記載就用 pll；letter｜joint｜pll",
    )
    add(
        "--orders",
        type=cli.one_of(*ORDERS),
        default="cyclic",
        help="letter 用：1 照原順序；cyclic 輪換順序取平均（預設）",
    )
    add = parser.add_argument_group("輸出").add_argument
    add("--json", action="store_true", help="結果以 JSON 輸出，一行一個物件")
    add(
        "--answer_format",
        type=cli.one_of("letter", "index"),
        default="letter",
        help="JSON 中的答案：letter（A、B…）或 index（從 0 起）",
    )
    add("--debug", action="store_true", help="出錯時顯示完整經過")
    return parser


# ---- 2. loading --------------------------------------------------------------------------------------------


def load_model(model_path, device=None):
    """Loads a masked language model for use.

    Args:
        model_path: a folder in Hugging Face format, or a name on the hub.
        device: a torch device or its name; None takes the GPU if there is one.

    Returns:
        (model, tokenizer, device). `model.run_card` holds how it was taught, None if it was not taught here.

    Raises:
        finetune.errors.UserError: no such folder, no weights, no masked language model.
    """
    model_path = str(model_path)
    from finetune import hub

    if not Path(model_path).expanduser().is_dir() and not hub.looks_local(model_path):
        hub.go_offline_if_unreachable()
    import torch

    from finetune import models
    from finetune.run_card import RunCard

    flag = "--model_path"
    if model_path == MODEL_FOLDER and not Path(model_path).exists():
        raise UserError(
            f"{flag} {model_path}：還沒有模型。先訓練一個：python fine_tuning_llm.py --demo，或指定資料夾"
        )
    models.check_source(model_path, flag)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = models.load_config(model_path, flag)
    tokenizer = models.load_tokenizer(model_path, flag)
    model = models.load_masked_lm(model_path, config, tokenizer, flag).to(device).eval()
    model.run_card = RunCard.read(model_path)
    return model, tokenizer, device


def _forward(model):
    """The model's forward pass at chosen positions, made once."""
    from finetune.models import BlankLogits

    if not hasattr(model, "_blank_logits"):
        object.__setattr__(model, "_blank_logits", BlankLogits(model).eval())  # not a submodule: no cycle
    return model._blank_logits


def _prompts(model, tokenizer):
    """The writer of prompts for this model, with the template it was taught with, made once."""
    from finetune.models import prompt_length
    from finetune.prompts import ExamPrompts, Template

    if not hasattr(model, "_exam_prompts"):
        card = getattr(model, "run_card", None)
        template, wanted = (card.template, card.max_length) if card else (Template(), 512)
        model._exam_prompts = ExamPrompts(tokenizer, prompt_length(model.config, tokenizer, wanted), template)
    return model._exam_prompts


# ---- 3. the two questions one can ask ----------------------------------------------------------------------


def predict_mask(model, tokenizer, prompt, device, top_k=5):
    """The likeliest words for the first [MASK] of `prompt`; one is added at the end if there is none.

    Returns:
        list of at most `top_k` words, best first: ["好", "熱", …]
    """
    return [word for word, _ in _filled(model, tokenizer, prompt, device, top_k)]


def _filled(model, tokenizer, prompt: str, device, top_k: int) -> list[tuple[str, float]]:
    from finetune.filling import fill_first_blank
    from finetune.models import prompt_length

    longest = prompt_length(model.config, tokenizer, sys.maxsize)
    return fill_first_blank(_forward(model), tokenizer, prompt, top_k, longest, device)


def qa_inference(model, tokenizer, question, options, device, top_k=3, scoring="auto", orders="cyclic"):
    """Answers a multiple-choice question.

    Args:
        options: {label: text}, 2 to 10 of them; labels are only names.
        scoring: `auto` (as the run card says, else `pll`), `letter`, `joint` or `pll`.
        orders: of `letter`: `1` or `cyclic`.

    Returns:
        list of at most `top_k` (label, text, score), best first; the score is a log-probability in nats.

    Raises:
        finetune.errors.UserError: a question or options that cannot be asked.
    """
    from finetune.exams import parse_question
    from finetune.scoring import ranking, score_options

    try:
        asked = parse_question({"question": question, "choices": list(options.values())}, need_answer=False)
    except ValueError as error:
        raise UserError(f"這一題問不了：{error}") from error
    card = getattr(model, "run_card", None)
    method = scoring if scoring != "auto" else card.scoring if card else "pll"
    scores, too_long = score_options(
        _forward(model), _prompts(model, tokenizer), [asked], method, orders, device=device
    )
    if too_long:
        raise UserError("這一題問不了：選項太長，超過模型的長度")
    labels = list(options)
    return [(labels[i], options[labels[i]], scores[0][i]) for i in ranking(scores[0])][:top_k]


_LABEL = r"([A-Ja-j]|[0-9]{1,2})"
OPTION = re.compile(
    rf"(?:^|(?<=[\s,，;；、])){_LABEL}\s*[:：]|[（(]{_LABEL}[)）]\s*[:：]?"
)  # `A:` or `（A）`


def parse_options(text: str) -> dict[str, str]:
    """`A:地球 B:木星 C: a b:c` -> {"A": "地球", "B": "木星", "C": "a b:c"}.

    Labels follow one another (A, B, C … or 1, 2, 3 …), so a colon inside an option starts no new one.

    Raises:
        UserError: fewer than two options, or an empty one.
    """
    text = text.strip()
    found: list[tuple[str, int, int]] = []  # label, where it starts, where its text starts
    for match in OPTION.finditer(text):
        label = (match[1] or match[2]).upper()
        expected = _after(found[-1][0]) if found else label
        if label == expected and (found or match.start() == 0):
            found.append((label, match.start(), match.end()))
    ends = [*(start for _, start, _ in found[1:]), len(text)][: len(found)]
    options = {
        label: text[start:end].strip(" \t\r\n,，;；、")
        for (label, _, start), end in zip(found, ends, strict=True)
    }
    if len(options) < 2:
        raise UserError(f"選項看不懂：{text!r}；請寫成 A:地球 B:木星 C:火星")
    if empty := [label for label, option in options.items() if not option]:
        raise UserError(f"選項 {'、'.join(empty)} 是空的；請寫成 A:地球 B:木星 C:火星")
    return options


def _after(label: str) -> str:
    return str(int(label) + 1) if label.isdigit() else chr(ord(label) + 1)


# ---- 4. the terminal ---------------------------------------------------------------------------------------

GREETING = """
============================================================
🤖 填空與選擇題
  輸入一句話：[MASK] 是空格，沒有就加在句尾
  輸入 qa：問一題選擇題
  輸入 quit、exit 或 q：離開
============================================================"""


def interactive_mode(model, tokenizer, device, top_k=5, scoring="auto", orders="cyclic"):
    """Asks and answers until quit, exit, q or Ctrl-D. A wrong entry is explained and never ends it."""
    try:
        import readline  # noqa: F401  line editing and history for input(); not there on Windows
    except ImportError:
        pass
    print(GREETING)
    try:
        while True:
            entry = input("💬 請輸入問題: ").strip()
            if entry.lower() in ("quit", "exit", "q"):
                break
            try:
                if entry.lower() == "qa":
                    _ask_in_terminal(model, tokenizer, device, scoring, orders)
                elif entry:
                    words = _filled(model, tokenizer, entry, device, top_k)
                    print(f"\n🔮 預測結果（Top {top_k}）:")
                    _print_words(words)
                    print()
            except UserError as error:
                print(f"⚠️ {error}\n")
    except (EOFError, KeyboardInterrupt):
        print()
    print("👋 再見！")


def _ask_in_terminal(model, tokenizer, device, scoring: str, orders: str) -> None:
    question = input("❓ 問題: ").strip()
    options = parse_options(input("選項: "))
    ranked = qa_inference(model, tokenizer, question, options, device, len(options), scoring, orders)
    print("\n🎯 預測結果（按可能性排序）:")
    _print_ranking(ranked)
    print()


def _print_words(words) -> None:
    for place, (word, _) in enumerate(words, 1):
        print(f"  {place}. {word}")


def _print_ranking(ranked) -> None:
    for place, (label, text, score) in enumerate(ranked, 1):
        print(f"  {place}. {label}: {text} (分數: {score:.4f})")


# ---- 5. main -----------------------------------------------------------------------------------------------


def main(argv=None) -> int:
    """Runs the script. Returns its exit code: 0 done, 1 failed, 2 bad flag or input, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return cli.run(lambda: answer(build_parser().read(argv)), debug="--debug" in argv)


def answer(flags) -> None:
    """One prompt, one question, or the terminal."""
    options = _check(flags)
    model, tokenizer, device = load_model(flags.model_path, "cpu" if flags.cpu else None)
    _set_precision(model, flags.precision, device)
    if flags.prompt is not None:
        words = _filled(model, tokenizer, flags.prompt, device, flags.top_k)
        if flags.json:
            predictions = [{"word": word, "probability": p} for word, p in words]
            print(json.dumps({"prompt": flags.prompt, "predictions": predictions}, ensure_ascii=False))
        else:
            print(f"問題: {flags.prompt}\n\n預測結果（Top {flags.top_k}）:")
            _print_words(words)
    if flags.question is not None:
        ranked = qa_inference(
            model, tokenizer, flags.question, options, device, len(options), flags.scoring, flags.orders
        )
        if flags.json:
            best = ranked[0][0]
            record = {
                "question": flags.question,
                "answer": best if flags.answer_format == "letter" else list(options).index(best),
                "scores": {label: score for label, _, score in ranked},
            }
            print(json.dumps(record, ensure_ascii=False))
        else:
            print(f"問題: {flags.question}\n\n預測結果（按可能性排序）:")
            _print_ranking(ranked)
    if flags.prompt is None and flags.question is None:
        interactive_mode(model, tokenizer, device, flags.top_k, flags.scoring, flags.orders)


def _check(flags) -> dict[str, str]:
    """All that is wrong with the flags, before anything is loaded. Returns the options."""
    problems, options = [], {}
    if flags.prompt is not None and not flags.prompt.strip():
        problems.append("--prompt 是空的")
    if (flags.question is None) != (flags.options is None):
        problems.append("--question 與 --options 要一起給")
    if flags.question is not None and not flags.question.strip():
        problems.append("--question 是空的")
    if flags.options is not None:
        try:
            options = parse_options(flags.options)
        except UserError as error:
            problems.append(f"--options：{error}")
    if flags.cpu and flags.precision == "fp16":
        problems.append("--precision fp16：CPU 請用 bf16 或 fp32")
    if flags.json and flags.prompt is None and flags.question is None:
        problems.append("--json 要與 --prompt 或 --question 一起給")
    if problems:
        raise UserError(problems)
    return options


def _set_precision(model, wanted: str, device) -> None:
    """Weights are converted once; autocast would convert them again at every call."""
    import torch

    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16：CPU 請用 bf16 或 fp32")
    wanted = "fp32" if wanted == "auto" else wanted  # bf16 rounds scores so coarsely that options tie
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted])


if __name__ == "__main__":
    sys.exit(main())
