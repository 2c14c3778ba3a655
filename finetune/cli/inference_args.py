"""Flags of inference.py as one typed object, and the checks on them before anything is loaded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune.cli.flag_types import choice, comma_list, float_in, int_in, path
from finetune.cli.inference_synonyms import USING
from finetune.cli.parser import Parser
from finetune.data.bad_rows import reset_log_once
from finetune.data.encodings import choose_encoding
from finetune.data.exam import SPLITS
from finetune.data.option_syntax import parse_options
from finetune.prompts.scoring_methods import GENERATE, METHODS, ORDERS, SHORT
from finetune.runtime import console
from finetune.runtime.errors import Problems, UserError
from finetune.runtime.file_types import CONVERSION_HINTS, READABLE, SUFFIXES, is_readable
from finetune.runtime.files import LONGEST_NAME, writable
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    from finetune.models.generation import Decoding

LONGEST_WORD = 4  # characters that one blank may become
MOST_WORDS = 1000  # that are listed
T = TypeVar("T")
BASE_MODEL = "base"  # value of --compare_with: the model before it was fine-tuned


@dataclass
class InferenceArgs:
    """Values of all flags of inference.py, by name; see `build_parser` for their meaning.

    Args:
        given: names of the flags that were given.
        choices: the parsed --options, label → text.
        decoding: how a causal model writes; set once the kind of the model is known.
    """

    # model
    model_path: str
    allow_pickle: bool
    cpu: bool
    precision: str
    local_rank: int  # set by launchers
    # filling blanks and classification
    prompt: str | None
    pair: str | None
    top_k: int
    word_length: int  # characters
    candidates: list[str] | None
    # text generation
    max_new_tokens: int
    do_sample: bool
    temperature: float  # 0: greedy
    top_p: float
    repetition_penalty: float
    num_beams: int  # 1: no beam search
    length_penalty: float
    early_stopping: bool
    seed: int | None  # None: a new one every time
    # multiple-choice questions
    question: str | None
    options: str | None
    scoring: str
    orders: str
    # whole files
    input: str | None
    text_column: str
    label_column: str
    output: str | None
    overwrite: bool
    strict: bool
    # evaluation
    exam: str | None
    split: str
    report: str | None
    subjects: str
    revision: str
    compare_with: str | None
    exam_limit: int  # questions; 0: all
    skip_option_only: bool
    on_bad_rows: str
    encoding: str | None  # None: from the content
    answers_from: str
    # inspection of data
    inspect: str | None
    max_length: int  # tokens of a question
    # output
    json: bool
    answer_format: str
    batch_size: int  # rows of a file read at once; 0: automatic
    debug: bool
    # what parsing adds
    given: frozenset[str] = frozenset()
    choices: dict[str, str] = field(default_factory=dict)
    decoding: Decoding | None = None


# fmt: off
def build_parser() -> Parser:
    """Build the parser of all flags, each with its unit, its scope and what 0 means."""
    parser = Parser(USING, prog="inference.py", usage=f"{console.command('inference.py')} [旗標]",
                        description="填空、對話、答選擇題、分類、處理整個檔案、評測、檢查題庫；都不給就在終端機對話")

    add = parser.add_argument_group("模型").add_argument
    add("--model_path", type=path, default=console.MODEL_FOLDER,
        help="模型資料夾或 hub 上的名稱（預設 %(default)s）")
    add("--allow_pickle", action="store_true",
        help="沒有 safetensors 時，也讀 pytorch_model.bin（pickle）；只取張量，不執行夾帶的程式")
    add("--cpu", action="store_true", help="不用 GPU")
    add("--precision", type=choice("auto", "fp32", "bf16", "fp16"), default="auto",
        help="auto｜fp32｜bf16｜fp16；auto 是 fp32，或在算 bf16 較快的 CPU 用 bf16，分數太接近的題再用 fp32")
    add("--local_rank", type=int_in(-1), default=-1, help="由啟動器填入")

    add = parser.add_argument_group("填空與分類").add_argument
    add("--prompt", help="一句話，[MASK] 是空格，沒有就加在句尾；因果模型則回答它，或續寫；分類模型則分類")
    add("--pair", help="分類模型：一對句子的第二句，第一句是 --prompt")
    add("--top_k", type=int_in(0, MOST_WORDS), default=5,
        help=f"列出前幾名（1 到 {MOST_WORDS}，預設 5；分類的 JSON 與檔案預設全部標籤）；"
             "因果模型從最可能的幾個裡抽樣（預設 50，0 = 全部）")
    add("--word_length", type=int_in(1, LONGEST_WORD), default=1,
        help="一個 [MASK] 最多變成幾個字（1 到 4，預設 1）；多個 [MASK] 則一起填")
    add("--candidates", type=comma_list, help="只從這些詞裡挑，例如 好,晴朗,下雨")

    add = parser.add_argument_group("文字生成（因果模型）").add_argument
    add("--max_new_tokens", type=int_in(1), default=256, help="最多生成幾個 token（預設 256）")
    add("--do_sample", action="store_true", help="抽樣；不加就每次選最可能的（greedy）")
    add("--temperature", type=float_in(0), default=1.0, help="抽樣的溫度；0 = greedy（預設 1）")
    add("--top_p", type=float_in(0, 1, above=True), default=1.0, help="只從合計這麼多機率的字裡抽（預設 1）")
    add("--repetition_penalty", type=float_in(0, above=True), default=1.0,
        help="大於 1 就少重複（預設 1）")
    add("--num_beams", type=int_in(1), default=1, help="束搜尋的寬度；1 = 不用（預設 1）")
    add("--length_penalty", type=float_in(-10, 10), default=1.0,
        help="束搜尋的長度獎懲：大於 0 偏好長的（預設 1）")
    add("--early_stopping", action="store_true", help="束搜尋湊滿 --num_beams 個完整的答案就停")
    add("--seed", type=int_in(0), default=None, help="抽樣的亂數種子；不給就每次不同")

    add = parser.add_argument_group("選擇題").add_argument
    add("--question", help="題目")
    add("--options", help='選項，例如 "A:地球 B:木星 C:火星"')
    add("--scoring", type=choice("auto", *METHODS, *SHORT, GENERATE), default="auto", metavar="SCORING",
        help="auto：照模型訓練的方式，沒有記載就用 pll；letter｜joint｜pll｜pll_l2r｜pll_word_l2r｜first，"
             "加 _sum 是總和，加 +pmi、+prior 是校正（pmi、prior 是簡寫）；"
             "因果模型：letter（預設）、prior、generate（寫出答案）")
    add("--orders", type=choice(*ORDERS), default="cyclic",
        help="letter 用：1 照原順序；cyclic 輪換順序取平均（預設）；all 全部順序；+prior 預設 1，"
             "因為輪換後先驗自己就抵消了")

    add = parser.add_argument_group("整個檔案").add_argument
    add("--input", type=path, help="題目檔（question、A、B…）、句子檔（prompt）或要分類的文字檔："
                        "csv、tsv、json、jsonl、parquet、arrow、xlsx、txt")
    add("--text_column", default="",
        help="分類：文字的欄位；句對寫兩個，例如 sentence1,sentence2（預設照訓練時的，沒有就自動辨識）")
    add("--label_column", default="",
        help="分類：正解的欄位，--input 與 --exam 用來算正確率，--inspect 看標籤（預設自動辨識）")
    add("--output", type=path, help="答案檔，一列一筆；中斷後同一個指令會接著做")
    add("--overwrite", action="store_true", help="答案檔已經存在時，重新作答並換掉它")
    add("--strict", action="store_true", help="有任何一列答不了就以 2 結束")

    add = parser.add_argument_group("評測").add_argument
    add("--exam", type=path,
        help="題庫：hub 名稱、資料夾、檔案，或 demo（內建示範）；分類模型則是有標籤的文字")
    add("--split", type=choice(*sorted(SPLITS), "all"), default="test", help="評測哪一部分（預設 test）")
    add("--report", type=path, help="報告寫到這個資料夾（預設 ./report_{題庫}）")
    add("--subjects", default="all", help="科目或類別，以逗號分開（預設 all）")
    add("--revision", default="v1.1", help="hub 資料集的版本（預設 %(default)s）")
    add("--compare_with", type=path,
        help="同一份題目再評測另一個模型：資料夾、hub 名稱，或 base（微調前的底模）")
    add("--exam_limit", type=int_in(0), default=0, help="最多評測幾題（固定抽樣）；0 = 全部")
    add("--skip_option_only", action="store_true", help="不測「只看選項」的基準，省一半時間")
    add("--on_bad_rows", type=choice("fail", "skip"), default="fail",
        help="有問題的列：fail 全部列出並停止（預設）；skip 略過")
    add("--encoding",
        help="讀的檔案不是 UTF-8 時用的編碼，例如 cp950（Big5）、gb18030（GBK）；不給就由內容判斷")
    add("--answers_from", type=choice("auto", "0", "1"), default="auto",
        help="整數答案裡，第一個選項是 0 還是 1；auto 看全部的列，看不出來就問（預設）")

    add = parser.add_argument_group("檢查題庫").add_argument
    add("--inspect", type=path,
        help="題庫：列數、科目、答案分布、重複、可疑的列；給 --model_path 再看 [UNK] 與長度。"
             "有標籤的文字：類別、重複、矛盾")
    add("--max_length", type=int_in(16), default=512, help="檢查長度時，一題最長幾個 token（預設 512）")

    add = parser.add_argument_group("輸出").add_argument
    add("--json", action="store_true", help="結果以 JSON 輸出，一行一個物件")
    add("--answer_format", type=choice("letter", "index"), default="letter",
        help="答案：letter（A、B…）或 index（起算方式同檔案裡的答案；選項1… 從 1，看不出來就從 0）")
    add("--batch_size", type=int_in(0), default=0, help="檔案一次讀幾列；0 = 自動")
    add("--debug", action="store_true", help="出錯時顯示完整經過")
    return parser
# fmt: on

GENERATION_FLAGS = (  # flags of text generation, by the names of generation.Decoding
    "max_new_tokens", "do_sample", "temperature", "top_p", "repetition_penalty", "num_beams",
    "length_penalty", "early_stopping", "seed",
)  # fmt: skip
KINDS = {  # titles of the kinds of models, by the names of kinds.CLASSES
    "masked": "填空的遮罩模型", "causal": "因果模型", "classifier": "分類模型", "choice": "選擇題模型",
}  # fmt: skip
FOR_KINDS = {  # flags that only some kinds of model have a use for
    ("word_length", "candidates"): ("masked",),
    GENERATION_FLAGS: ("causal",),
    ("pair", "text_column", "label_column"): ("classifier",),
    ("compare_with", "skip_option_only", "subjects"): ("masked", "causal", "choice"),
    ("prompt", "top_k"): ("masked", "causal", "classifier"),
    ("orders",): ("masked", "causal"),
    ("question", "options", "scoring", "answer_format"): ("masked", "causal", "choice"),
}
JOBS = {"exam": "--exam", "input": "--input", "inspect": "--inspect"}


def parse_args(argv: list[str]) -> InferenceArgs:
    """Parse the command line and check the flags against one another.

    Raises:
        UserError: with every problem of the flags.
    """
    parser = build_parser()
    args = InferenceArgs(**vars(parser.read(argv)), given=frozenset(parser.given))
    if "orders" not in args.given and SHORT.get(args.scoring, args.scoring).endswith("+prior"):
        args.orders = "1"  # over all rotations a prior cancels by itself
    reset_log_once()
    problems = Problems()
    with problems:
        choose_encoding(args.encoding)
    for check in (_check_job, _check_prompt, _check_question, _check_files, _check_writing, _check_hardware):
        with problems:
            check(args)
    problems.report()
    return args


def _check_job(args: InferenceArgs) -> None:
    jobs = [flag for name, flag in JOBS.items() if getattr(args, name) is not None]
    single = [f"--{name}" for name in ("prompt", "question") if getattr(args, name) is not None]
    if len(jobs) > 1 or (jobs and single):
        raise UserError(f"{'、'.join(jobs + single)} 一次只能做一件")
    if args.json and not jobs and not single:
        raise UserError("--json 要與 --prompt、--question、--input、--exam 或 --inspect 一起給")
    if args.candidates and args.prompt is None and args.input is None:
        raise UserError("--candidates 要與 --prompt 或 --input 一起給")
    for name, owner in (
        ("report", "exam"), ("compare_with", "exam"), ("output", "input"), ("pair", "prompt"),
        ("max_length", "inspect"),
    ):  # fmt: skip
        if name in args.given and getattr(args, owner) is None:
            hint = "；回答最長幾個 token 是 --max_new_tokens" if name == "max_length" else ""
            raise UserError(f"--{name} 要與 --{owner} 一起給{hint}")
    for name in ("text_column", "label_column"):
        if name in args.given and args.input is None and args.exam is None and args.inspect is None:
            raise UserError(f"--{name} 要與 --input、--exam 或 --inspect 一起給")
    if args.report and Path(args.report).is_file():
        raise UserError(f"--report {args.report} 是一個檔案，應為資料夾")


def _check_prompt(args: InferenceArgs) -> None:
    for name in ("prompt", "pair"):
        if getattr(args, name) is not None and not getattr(args, name).strip():
            raise UserError(f"--{name} 是空的")
        if reason := too_long(getattr(args, name) or ""):
            raise UserError(f"--{name} {reason}")


def _check_question(args: InferenceArgs) -> None:
    if (args.question is None) != (args.options is None):
        raise UserError("--question 與 --options 要一起給")
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
    problems = []
    if args.output is None:
        problems.append("--input 要與 --output 一起給")
    for name in ("input", "output"):
        path = Path(getattr(args, name) or "x.csv")
        if name == "input" and not path.is_file():
            problems.append(f"--input {path}：沒有這個檔案")
        elif name == "input" and (way := CONVERSION_HINTS.get(path.suffix.lower())):
            problems.append(f"--input {path}：{way}")
        elif not is_readable(path, ".txt") if name == "input" else path.suffix.lower() not in SUFFIXES:
            suffix, accepted = path.suffix or "沒有副檔名", READABLE if name == "input" else SUFFIXES
            problems.append(f"--{name} {path}：不認得 {suffix} 檔，要 {'、'.join(accepted)}")
        elif name == "output" and path.is_dir():
            problems.append(f"--output {path} 是一個資料夾，應為檔案")
        elif name == "output" and not writable(path.parent):
            problems.append(f"--output {path}：{path.parent} 不能寫入（唯讀、沒有權限，或不是資料夾）")
        elif name == "output" and len(os.fsencode(path.name)) > LONGEST_NAME - len(".part"):
            problems.append(f"--output {path}：檔名太長，作答時還要在後面加 .part")
    same = args.output and os.path.realpath(args.output) == os.path.realpath(args.input)
    if same or (args.output and _samefile(args.input, args.output)):
        problems.append(f"--output 與 --input 是同一個檔案：{args.input}")
    if problems:
        raise UserError(problems)


def _samefile(one: str, other: str) -> bool:
    """Return whether two paths lead to one file, by hard links too; False where one does not exist."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _check_writing(args: InferenceArgs) -> None:
    if args.do_sample and args.num_beams > 1:
        raise UserError(f"--num_beams {args.num_beams} 與 --do_sample 不能一起用：束搜尋不抽樣")
    if args.temperature == 0 and args.do_sample:
        console.log("--temperature 0：就是 greedy，不抽樣")
    sampling = [name for name in ("temperature", "top_p", "seed") if name in args.given]
    if sampling and not args.do_sample:
        console.log(f"⚠️ {'、'.join('--' + name for name in sampling)} 沒有作用：抽樣要加 --do_sample")
    beams = [name for name in ("length_penalty", "early_stopping") if name in args.given]
    if beams and args.num_beams == 1:
        console.log(f"⚠️ {'、'.join('--' + name for name in beams)} 沒有作用：束搜尋要加 --num_beams 2 以上")


def required(value: T | None) -> T:
    """Return the value of a flag without which the job at hand would not have been chosen."""
    assert value is not None
    return value


def decoding_of(args: InferenceArgs) -> Decoding:
    """Return how a causal model chooses its next token. Imports torch."""
    from finetune.models.generation import Decoding

    options = {name: getattr(args, name) for name in GENERATION_FLAGS}
    if "top_k" in args.given:  # its default is for lists of words
        options["top_k"] = args.top_k
    return Decoding(**options)


def lock_targets(args: InferenceArgs) -> list[tuple[str, Path]]:
    """List the places that are written to, each with its name in messages and its lock file."""
    from finetune.runtime import locks

    if args.input is not None:
        assert args.output is not None  # see `_check_files`
        return [(f"--output {args.output}", locks.lock_path(args.output))]
    if args.exam is not None:
        folder = report_folder(args)
        return [(f"--report {folder}", locks.lock_path(folder))]
    return []


def check_kind(args: InferenceArgs, kind: str) -> None:
    """Refuse flags that are meant for another kind of model, and warn of those without effect.

    Args:
        kind: kind of the model, one of KINDS.

    Raises:
        UserError: with the flags that this model has no use for.
    """
    is_causal, problems = kind == "causal", []
    only = {"classifier": "，只會分類", "choice": "，只答選擇題"}.get(kind, "")
    for names, fitting_kinds in FOR_KINDS.items():
        idle = "、".join("--" + name for name in names if name in args.given)
        if idle and kind not in fitting_kinds:
            others = "、".join(KINDS[fitting] for fitting in fitting_kinds)
            problems.append(f"{idle} 用於{others}；{args.model_path} 是{KINDS[kind]}{only}")
    if problems:
        raise UserError(problems)
    if is_causal and (args.exam is not None or (args.question is not None and args.prompt is None)):
        warn_of_unused_generation_flags(args)
    if is_causal and "top_k" in args.given and not args.do_sample:
        console.log("⚠️ --top_k 沒有作用：抽樣要加 --do_sample")
    if not is_causal and args.top_k == 0:
        raise UserError(f"--top_k 0：填空與分類要列出 1 到 {MOST_WORDS} 名")


def warn_of_unused_generation_flags(args: InferenceArgs) -> None:
    """Warn of flags of text generation that were given where a causal model only chooses a letter."""
    if idle := "、".join("--" + name for name in GENERATION_FLAGS if name in args.given):
        console.log(f"⚠️ {idle} 沒有作用：選擇題不使用文字生成的旗標")


def _check_hardware(args: InferenceArgs) -> None:
    if args.cpu and args.precision == "fp16":
        raise UserError("--precision fp16：CPU 請用 bf16 或 fp32")


def report_folder(args: InferenceArgs) -> str:
    """Return --report, or its default: report_{name of the exam}, in the current folder."""
    name = re.sub(r"[^\w.-]+", "_", Path(required(args.exam)).stem).strip("_.")
    return args.report or f"report_{name or 'exam'}"
