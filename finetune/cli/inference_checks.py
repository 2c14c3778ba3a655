"""Parse the flags of inference.py and check them: against one another, then against the kind of model."""

from __future__ import annotations

from pathlib import Path

from finetune.cli.embed_checks import check_embed
from finetune.cli.exam_checks import check_repeats
from finetune.cli.file_checks import is_same_file, source_problems, target_problems
from finetune.cli.inference_args import GENERATION_FLAGS, KINDS, MOST_WORDS, InferenceArgs, decoding_of
from finetune.cli.inference_parser import build_parser
from finetune.cli.serve_checks import check_serve
from finetune.data import conll
from finetune.data.bad_rows import reset_log_once
from finetune.data.encodings import choose_encoding
from finetune.data.known_exams import default_revision
from finetune.data.option_syntax import parse_options
from finetune.prompts.protocol import OURS, load_protocol
from finetune.prompts.scoring_methods import GENERATE, SHORT
from finetune.runtime import console, hub
from finetune.runtime.errors import Problems, UserError
from finetune.runtime.file_types import SUFFIXES
from finetune.runtime.server_address import api_key, checked_address, is_server
from finetune.runtime.strict_json import too_long

ONLY = {  # what a kind of model does, for messages
    "classifier": "，只會分類", "choice": "，只答選擇題", "tagger": "，只會標註",
    "extractor": "，只在文章裡找答案", "seq2seq": "，只把一段文字轉換成另一段",
    "encoder": "，只能得到向量（--embed、--hidden_states）",
}  # fmt: skip
ROW_KINDS = ("classifier", "tagger", "extractor", "seq2seq")  # their files may hold the right answers
FOR_KINDS = {  # flags that only some kinds of model have a use for
    ("word_length", "candidates"): ("masked",),
    GENERATION_FLAGS: ("causal", "seq2seq"),
    ("system_prompt",): ("causal",),
    ("prompt_format", "fewshot_as_multiturn", "chat_template_kwargs"): ("causal",),
    ("num_fewshot",): ("masked", "causal"),
    ("protocol", "log_prompts", "repeat", "audit_keys"): ("masked", "causal", "choice"),
    ("pair",): ("classifier",),
    ("text_column", "label_column"): ROW_KINDS,
    ("compare_with",): ("masked", "causal", "choice", "seq2seq"),
    ("skip_option_only", "subjects", "revisions"): ("masked", "causal", "choice"),
    ("prompt",): ("masked", "causal", "classifier", "tagger", "seq2seq"),
    ("top_k",): ("masked", "causal", "classifier", "extractor", "seq2seq"),
    ("orders",): ("masked", "causal"),
    ("options", "scoring", "answer_format"): ("masked", "causal", "choice"),
    ("question",): ("masked", "causal", "choice", "extractor"),
    ("context", "max_answer_length"): ("extractor",),
    ("input", "exam"): ("masked", "causal", "choice", *ROW_KINDS),
}
# arguments of apply_chat_template that are not the template's own
TEMPLATE_ARGUMENTS = {
    "self", "conversation", "messages", "chat_template", "tokenize", "add_generation_prompt",
    "return_tensors", "return_dict", "continue_final_message", "padding", "truncation", "max_length",
    "tokenizer_kwargs", "return_assistant_tokens_mask", "sanitize_control_tokens",
}  # fmt: skip
SERVER_FLAGS = ("served_model", "concurrency", "request_timeout")
LOCAL_DECODING = ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size")
LOCAL_FLAGS = ("precision", "allow_pickle")
JOBS = {
    "exam": "--exam", "input": "--input", "inspect": "--inspect", "compare": "--compare", "embed": "--embed",
    "draw": "--draw", "serve": "--serve", "drift": "--drift",
}  # fmt: skip


def parse_args(argv: list[str]) -> InferenceArgs:
    """Parse the command line and check the flags against one another.

    Raises:
        UserError: with every problem of the flags.
    """
    parser = build_parser()
    args = InferenceArgs(**vars(parser.read(argv)), given=frozenset(parser.given))
    if "revision" not in args.given:
        args.revision = default_revision(args.exam or args.inspect or "")
    if "orders" not in args.given:
        if SHORT.get(args.scoring, args.scoring).endswith("+prior"):
            args.orders = "1"  # over all rotations a prior cancels by itself
        if args.protocol != OURS:
            args.orders = "1"  # as others ask
    reset_log_once()
    problems = Problems()
    with problems:
        choose_encoding(args.encoding)
    for check in CHECKS:
        with problems:
            check(args)
    problems.report()
    return args


def _check_job(args: InferenceArgs) -> None:
    jobs = [flag for name, flag in JOBS.items() if getattr(args, name) not in (None, False)]
    single = [f"--{name}" for name in ("prompt", "question") if getattr(args, name) is not None]
    if len(jobs) > 1 or (jobs and single):
        raise UserError(f"{'、'.join(jobs + single)} 一次只能做一件")
    if args.json and (args.serve or (not jobs and not single)):
        ways = ["--prompt", "--question", *(flag for flag in JOBS.values() if flag != "--serve")]
        raise UserError(f"--json 要與 {'、'.join(ways[:-1])} 或 {ways[-1]} 一起給")
    if args.candidates and args.prompt is None and args.input is None:
        raise UserError("--candidates 要與 --prompt 或 --input 一起給")
    problems = []
    for name, owner in (
        ("compare_with", "exam"), ("pair", "prompt"), ("context", "question"),
        ("nearest", "embed"), ("hidden_states", "prompt"),
        ("max_length", "inspect"), ("protocol", "exam"), ("num_fewshot", "exam"), ("prompt_format", "exam"),
        ("fewshot_as_multiturn", "exam"), ("log_prompts", "exam"), ("repeat", "exam"), ("audit_keys", "exam"),
    ):  # fmt: skip
        if name in args.given and getattr(args, owner) is None:
            hint = "；回答最長幾個 token 是 --max_new_tokens" if name == "max_length" else ""
            problems.append(f"--{name} 要與 --{owner} 一起給{hint}")
    if problems:
        raise UserError(problems)
    if "pooling" in args.given and args.embed is None and not args.serve:
        raise UserError("--pooling 要與 --embed 或 --serve 一起給")
    if args.output is not None and args.input is None and args.embed is None:
        raise UserError("--output 要與 --input 或 --embed 一起給")
    if args.report is not None and all(job is None for job in (args.exam, args.compare, args.drift)):
        raise UserError("--report 要與 --exam、--compare 或 --drift 一起給")
    _check_comparison(args)
    for name in ("text_column", "label_column"):
        sources = (args.input, args.exam, args.inspect, args.embed)
        if name in args.given and all(source is None for source in sources):
            raise UserError(f"--{name} 要與 --input、--exam、--inspect 或 --embed 一起給")
    check_repeats(args.repeat, args.scoring, args.orders if "orders" in args.given else None)
    if args.report and Path(args.report).is_file():
        raise UserError(f"--report {args.report} 是一個檔案，應為資料夾")


def _check_revisions(args: InferenceArgs) -> None:
    if args.revisions is None:
        return
    given = f"--revisions {' '.join(args.revisions)}"
    if args.exam is None:
        raise UserError("--revisions 要與 --exam 一起給")
    if len(args.revisions) != 2:
        raise UserError(f"{given}：要兩個版本（得到 {len(args.revisions)} 個），例如 --revisions v1.0 v1.1")
    if args.revisions[0] == args.revisions[1]:
        raise UserError(f"{given}：同一個版本給了兩次；要兩個不同的版本，例如 --revisions v1.0 v1.1")
    if "revision" in args.given:
        raise UserError(f"--revision {args.revision} 與 {given} 只能給一個")
    if args.exam == "demo" or hub.is_local(args.exam):
        kind = "內建示範" if args.exam == "demo" else "本機的檔案或資料夾"
        raise UserError(
            f"{given}：--exam {args.exam} 是{kind}，沒有版本；版本是 hub 上的，例如 --exam ikala/tmmluplus"
        )


def _check_comparison(args: InferenceArgs) -> None:
    """Refuse anything but two different paths after --compare."""
    if args.compare is None:
        return
    if len(args.compare) != 2:
        given = "、".join(args.compare)
        raise UserError(f"--compare 要剛好兩份作答，得到 {len(args.compare)} 份：{given}")
    if is_same_file(*args.compare):
        raise UserError(f"--compare：{args.compare[0]} 與 {args.compare[1]} 是同一份作答；請給兩個模型的作答")


def _check_prompt(args: InferenceArgs) -> None:
    for name in ("prompt", "pair", "system_prompt", "context", "nearest"):
        if getattr(args, name) is not None and not getattr(args, name).strip():
            raise UserError(f"--{name} 是空的")
        if reason := too_long(getattr(args, name) or ""):
            raise UserError(f"--{name} {reason}")


def _check_question(args: InferenceArgs) -> None:
    if args.options is not None and args.context is not None:
        raise UserError("--options 與 --context 只能給一個：選擇題，或問一篇文章")
    if (args.question is None) != (args.options is None and args.context is None):
        raise UserError("--question 與 --options（選擇題）或 --context（問一篇文章）要一起給")
    if args.question is not None and not args.question.strip():
        raise UserError("--question 是空的")
    try:
        f"{args.question}{args.options}".encode()
    except UnicodeEncodeError:
        raise UserError("--question、--options 不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
    for name in ("question", "options"):
        if reason := too_long(getattr(args, name) or ""):
            raise UserError(f"--{name} {reason}")
    if args.options is not None:
        try:
            args.choices = parse_options(args.options)
        except UserError as error:
            raise UserError(f"--options：{error}") from error


def _check_files(args: InferenceArgs) -> None:
    if args.input is None:
        return
    problems = [] if args.output is not None else ["--input 要與 --output 一起給"]
    problems += source_problems("--input", Path(args.input), *conll.SUFFIXES)
    if args.output is not None:
        problems += target_problems("--output", Path(args.output), SUFFIXES)
        if is_same_file(args.input, args.output):
            problems.append(f"--output 與 --input 是同一個檔案：{args.input}")
    if problems:
        raise UserError(problems)


def _check_writing(args: InferenceArgs) -> None:
    decoding_of(args)
    if args.temperature == 0 and args.do_sample:
        console.log("--temperature 0：就是 greedy，不抽樣")
    sampling = [name for name in ("temperature", "top_p", "min_p", "seed") if name in args.given]
    if sampling and not args.do_sample:
        console.log(f"⚠️ {'、'.join('--' + name for name in sampling)} 沒有作用：抽樣要加 --do_sample")
    beams = [name for name in ("length_penalty", "early_stopping") if name in args.given]
    if beams and args.num_beams == 1:
        console.log(f"⚠️ {'、'.join('--' + name for name in beams)} 沒有作用：束搜尋要加 --num_beams 2 以上")


def _check_asking(args: InferenceArgs) -> None:
    protocol = load_protocol(args.protocol)
    if args.prompt_format != "auto":
        protocol.form_name(args.prompt_format, has_template=True)
    names = [name for name, _ in args.chat_template_kwargs]
    problems = []
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        problems.append(f"--chat_template_kwargs：{'、'.join(twice)} 給了兩次")
    if taken := [name for name in names if name in TEMPLATE_ARGUMENTS]:
        problems.append(f"--chat_template_kwargs：{'、'.join(taken)} 由程式決定，不能指定")
    if problems:
        raise UserError(problems)


def _check_hardware(args: InferenceArgs) -> None:
    if args.cpu and args.precision == "fp16":
        raise UserError("--precision fp16：CPU 請用 bf16 或 fp32")


def _check_server(args: InferenceArgs) -> None:
    named = [name for name in ("model_path", "compare_with") if is_server(getattr(args, name) or "")]
    idle = "、".join("--" + name for name in SERVER_FLAGS if name in args.given)
    if not named:
        if idle and not args.serve:
            raise UserError(f"{idle} 用於伺服器上的模型：--model_path http://主機:埠/v1")
        return
    problems = Problems()
    for name in named:
        with problems:
            checked_address(getattr(args, name), f"--{name}")
    with problems:
        api_key()
    if unknown := "、".join("--" + name for name in LOCAL_DECODING if name in args.given):
        with problems:
            raise UserError(f"{unknown}：伺服器不會，只有本機載入的模型會；請不加")
    problems.report()
    if "model_path" in named and (idle := "、".join("--" + n for n in LOCAL_FLAGS if n in args.given)):
        console.log(f"⚠️ {idle} 沒有作用：精度與權重由伺服器決定")


CHECKS = (
    _check_job, _check_revisions, _check_prompt, _check_question, _check_files, check_embed, check_serve,
    _check_writing, _check_asking, _check_hardware, _check_server,
)  # fmt: skip


def check_kind(args: InferenceArgs, kind: str) -> None:
    """Refuse flags that are meant for another kind of model, and warn of those without effect.

    Args:
        kind: kind of the model, one of KINDS.

    Raises:
        UserError: with the flags that this model has no use for.
    """
    is_causal, problems = kind == "causal", []
    if args.embed is not None or args.hidden_states:
        return
    only = ONLY.get(kind, "")
    for names, fitting_kinds in FOR_KINDS.items():
        idle = "、".join("--" + name for name in names if name in args.given)
        if idle and kind not in fitting_kinds:
            others = "、".join(KINDS[fitting] for fitting in fitting_kinds)
            problems.append(f"{idle} 用於{others}；{args.model_path} 是{KINDS[kind]}{only}")
    if args.exam == "demo" and kind in ROW_KINDS:
        problems.append(f"--exam demo 是內建的選擇題；{args.model_path} 是{KINDS[kind]}{only}")
    if problems:
        raise UserError(problems)
    if is_causal and args.question is not None and args.prompt is None and args.scoring != GENERATE:
        warn_of_unused_generation_flags(args)
    if kind in ("causal", "seq2seq") and "top_k" in args.given and not args.do_sample:
        console.log("⚠️ --top_k 沒有作用：抽樣要加 --do_sample")
    if kind not in ("causal", "seq2seq") and args.top_k == 0:
        raise UserError(f"--top_k 0：{KINDS[kind]}要列出 1 到 {MOST_WORDS} 名")


def warn_of_unused_generation_flags(args: InferenceArgs) -> None:
    """Warn of flags of text generation that were given where a causal model only chooses a letter."""
    if idle := "、".join("--" + name for name in GENERATION_FLAGS if name in args.given):
        console.log(f"⚠️ {idle} 沒有作用：選擇題不使用文字生成的旗標")
