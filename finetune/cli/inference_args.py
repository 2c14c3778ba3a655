"""The flags of the using script, and what can be wrong with them before anything is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from finetune.cli import flag_types
from finetune.cli.inference_synonyms import USING
from finetune.cli.parser import Parser
from finetune.data.bad_rows import forget_told
from finetune.data.encodings import choose_encoding
from finetune.data.exam import SPLITS
from finetune.data.option_syntax import parse_options
from finetune.prompts.scoring_methods import GENERATE, METHODS, ORDERS, SHORT
from finetune.runtime import console
from finetune.runtime.errors import Problems, UserError
from finetune.runtime.file_types import READABLE, SUFFIXES, WAYS_OUT, is_readable
from finetune.runtime.files import LONGEST_NAME, writable
from finetune.runtime.strict_json import too_long

LONGEST_WORD = 4  # characters that one blank may become
MOST_WORDS = 1000  # that are listed


# fmt: off
BASE_MODEL = "base"  # of --compare_with: the model before it was trained


def build_parser() -> Parser:
    parser = Parser(USING, prog="inference.py", usage="python inference.py [旗標]",
                        description="填空、對話、答選擇題、分類、處理整個檔案、考試、檢查題庫；都不給就在終端機對話")
    whole, number, one_of, place = flag_types.int_in, flag_types.float_in, flag_types.choice, flag_types.path

    add = parser.add_argument_group("模型").add_argument
    add("--model_path", type=place, default=console.MODEL_FOLDER,
        help="模型資料夾或 hub 上的名稱（預設 %(default)s）")
    add("--allow_pickle", action="store_true",
        help="沒有 safetensors 時，也讀 pytorch_model.bin（pickle）；只取張量，不執行夾帶的程式")
    add("--cpu", action="store_true", help="不用 GPU")
    add("--precision", type=one_of("auto", "fp32", "bf16", "fp16"), default="auto",
        help="auto｜fp32｜bf16｜fp16；auto 是 fp32，或在算 bf16 較快的 CPU 用 bf16，難分高下的題再用 fp32")
    add("--local_rank", type=whole(-1), default=-1, help="由啟動器填入")

    add = parser.add_argument_group("填空與分類").add_argument
    add("--prompt", help="一句話，[MASK] 是空格，沒有就加在句尾；因果模型則回答它，或接著寫；分類模型則分類")
    add("--pair", help="分類模型：一對句子的第二句，第一句是 --prompt")
    add("--top_k", type=whole(0, MOST_WORDS), default=5,
        help=f"列出前幾名（1 到 {MOST_WORDS}，預設 5；分類的 JSON 與檔案預設全部標籤）；"
             "因果模型從最可能的幾個裡抽樣（預設 50，0 = 全部）")
    add("--word_length", type=whole(1, LONGEST_WORD), default=1,
        help="一個 [MASK] 最多變成幾個字（1 到 4，預設 1）；多個 [MASK] 則一起填")
    add("--candidates", type=flag_types.comma_list, help="只從這些詞裡挑，例如 好,晴朗,下雨")

    add = parser.add_argument_group("寫作（因果模型）").add_argument
    add("--max_new_tokens", type=whole(1), default=256, help="最多寫幾個 token（預設 256）")
    add("--do_sample", action="store_true", help="抽樣；不加就每次選最可能的（greedy）")
    add("--temperature", type=number(0), default=1.0, help="抽樣的溫度；0 = greedy（預設 1）")
    add("--top_p", type=number(0, 1, above=True), default=1.0, help="只從合計這麼多機率的字裡抽（預設 1）")
    add("--repetition_penalty", type=number(0, above=True), default=1.0,
        help="大於 1 就少重複（預設 1）")
    add("--num_beams", type=whole(1), default=1, help="束搜尋的寬度；1 = 不用（預設 1）")
    add("--length_penalty", type=number(-10, 10), default=1.0,
        help="束搜尋的長度獎懲：大於 0 偏好長的（預設 1）")
    add("--early_stopping", action="store_true", help="束搜尋湊滿 --num_beams 個完整的答案就停")
    add("--seed", type=whole(0), default=None, help="抽樣的亂數種子；不給就每次不同")

    add = parser.add_argument_group("選擇題").add_argument
    add("--question", help="題目")
    add("--options", help='選項，例如 "A:地球 B:木星 C:火星"')
    add("--scoring", type=one_of("auto", *METHODS, *SHORT, GENERATE), default="auto", metavar="SCORING",
        help="auto：照模型學的方式，沒有記載就用 pll；letter｜joint｜pll｜pll_l2r｜pll_word_l2r｜first，"
             "加 _sum 是總和，加 +pmi、+prior 是校正（pmi、prior 是簡寫）；"
             "因果模型：letter（預設）、prior、generate（寫出答案）")
    add("--orders", type=one_of(*ORDERS), default="cyclic",
        help="letter 用：1 照原順序；cyclic 輪換順序取平均（預設）；all 全部順序；+prior 預設 1，"
             "因為輪換後先驗自己就抵消了")

    add = parser.add_argument_group("整個檔案").add_argument
    add("--input", type=place, help="題目檔（question、A、B…）、句子檔（prompt）或要分類的文字檔："
                        "csv、tsv、json、jsonl、parquet、arrow、xlsx、txt")
    add("--text_column", default="",
        help="分類：文字的欄位；句對寫兩個，例如 sentence1,sentence2（預設照訓練時的，沒有就自己找）")
    add("--label_column", default="",
        help="分類：正解的欄位，--input 與 --exam 用來算正確率，--inspect 看標籤（預設自己找）")
    add("--output", type=place, help="答案檔，一列一筆；中斷後同一個指令會接著做")
    add("--overwrite", action="store_true", help="答案檔已經存在時，重新作答並換掉它")
    add("--strict", action="store_true", help="有任何一列答不了就以 2 結束")

    add = parser.add_argument_group("考試").add_argument
    add("--exam", type=place,
        help="題庫：hub 名稱、資料夾、檔案，或 demo（內建示範）；分類模型則是有標籤的文字")
    add("--split", type=one_of(*sorted(SPLITS), "all"), default="test", help="考哪一部分（預設 test）")
    add("--report", type=place, help="報告寫到這個資料夾（預設 ./report_{題庫}）")
    add("--subjects", default="all", help="科目或類別，以逗號分開（預設 all）")
    add("--revision", default="v1.1", help="hub 資料集的版本（預設 %(default)s）")
    add("--compare_with", type=place,
        help="同一份題目再考另一個模型：資料夾、hub 名稱，或 base（微調前的底模）")
    add("--exam_limit", type=whole(0), default=0, help="最多考幾題（固定抽樣）；0 = 全部")
    add("--skip_option_only", action="store_true", help="不測「只看選項」的基準，省一半時間")
    add("--on_bad_rows", type=one_of("fail", "skip"), default="fail",
        help="有問題的列：fail 全部列出並停止（預設）；skip 略過")
    add("--encoding",
        help="讀的檔案不是 UTF-8 時用的編碼，例如 cp950（Big5）、gb18030（GBK）；不給就由內容判斷")
    add("--answers_from", type=one_of("auto", "0", "1"), default="auto",
        help="整數答案裡，第一個選項是 0 還是 1；auto 看全部的列，看不出來就問（預設）")

    add = parser.add_argument_group("檢查題庫").add_argument
    add("--inspect", type=place,
        help="題庫：列數、科目、答案分布、重複、可疑的列；給 --model_path 再看 [UNK] 與長度。"
             "有標籤的文字：類別、重複、矛盾")
    add("--max_length", type=whole(16), default=512, help="檢查長度時，一題最長幾個 token（預設 512）")

    add = parser.add_argument_group("輸出").add_argument
    add("--json", action="store_true", help="結果以 JSON 輸出，一行一個物件")
    add("--answer_format", type=one_of("letter", "index"), default="letter",
        help="答案：letter（A、B…）或 index（和檔案裡的答案同樣算法；選項1… 從 1，看不出來就從 0）")
    add("--batch_size", type=whole(0), default=0, help="檔案一次讀幾列；0 = 自動")
    add("--debug", action="store_true", help="出錯時顯示完整經過")
    return parser
# fmt: on

WRITING = (  # how a causal model writes, by the names of decoding.Decoding
    "max_new_tokens", "do_sample", "temperature", "top_p", "repetition_penalty", "num_beams",
    "length_penalty", "early_stopping", "seed",
)  # fmt: skip
KINDS = {  # of models, by the names of kinds.CLASSES
    "masked": "填空的遮罩模型", "causal": "因果模型", "classifier": "分類模型", "choice": "選擇題模型",
}  # fmt: skip
FOR_KINDS = {  # flags that only some kinds of model have a use for
    ("word_length", "candidates"): ("masked",),
    WRITING: ("causal",),
    ("pair", "text_column", "label_column"): ("classifier",),
    ("compare_with", "skip_option_only", "subjects"): ("masked", "causal", "choice"),
    ("prompt", "top_k"): ("masked", "causal", "classifier"),
    ("orders",): ("masked", "causal"),
    ("question", "options", "scoring", "answer_format"): ("masked", "causal", "choice"),
}
JOBS = {"exam": "--exam", "input": "--input", "inspect": "--inspect"}


def read_flags(argv: list[str]):
    """The flags of the using script; `flags.choices`: the parsed --options, `flags.given`: what was named.

    Raises:
        UserError: all that is wrong with them.
    """
    parser = build_parser()
    flags = parser.read(argv)
    flags.given = parser.given
    flags.choices = {}
    if "orders" not in parser.given and SHORT.get(flags.scoring, flags.scoring).endswith("+prior"):
        flags.orders = "1"  # over all rotations a prior cancels by itself
    forget_told()
    problems = Problems()
    with problems:
        choose_encoding(flags.encoding)
    for check in (_one_job, _prompt, _question, _file, _writing, _machine):
        with problems:
            check(flags)
    problems.report()
    return flags


def _one_job(flags) -> None:
    jobs = [flag for name, flag in JOBS.items() if getattr(flags, name) is not None]
    asked = [f"--{name}" for name in ("prompt", "question") if getattr(flags, name) is not None]
    if len(jobs) > 1 or (jobs and asked):
        raise UserError(f"{'、'.join(jobs + asked)} 一次只能做一件")
    if flags.json and not jobs and not asked:
        raise UserError("--json 要與 --prompt、--question、--input、--exam 或 --inspect 一起給")
    if flags.candidates and flags.prompt is None and flags.input is None:
        raise UserError("--candidates 要與 --prompt 或 --input 一起給")
    for name, owner in (
        ("report", "exam"), ("compare_with", "exam"), ("output", "input"), ("pair", "prompt"),
        ("max_length", "inspect"),
    ):  # fmt: skip
        if name in flags.given and getattr(flags, owner) is None:
            more = "；回答最長幾個 token 是 --max_new_tokens" if name == "max_length" else ""
            raise UserError(f"--{name} 要與 --{owner} 一起給{more}")
    for name in ("text_column", "label_column"):
        if name in flags.given and flags.input is None and flags.exam is None and flags.inspect is None:
            raise UserError(f"--{name} 要與 --input、--exam 或 --inspect 一起給")
    if flags.report and Path(flags.report).is_file():
        raise UserError(f"--report {flags.report} 是一個檔案，應為資料夾")


def _prompt(flags) -> None:
    for name in ("prompt", "pair"):
        if getattr(flags, name) is not None and not getattr(flags, name).strip():
            raise UserError(f"--{name} 是空的")
        if reason := too_long(getattr(flags, name) or ""):
            raise UserError(f"--{name} {reason}")


def _question(flags) -> None:
    if (flags.question is None) != (flags.options is None):
        raise UserError("--question 與 --options 要一起給")
    if flags.question is not None and not flags.question.strip():
        raise UserError("--question 是空的")
    try:
        f"{flags.question}{flags.options}".encode()
    except UnicodeEncodeError:
        raise UserError("--question、--options 不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
    for name in ("question", "options"):
        if reason := too_long(getattr(flags, name) or ""):
            raise UserError(f"--{name} {reason}")
    if flags.options is not None:
        try:
            flags.choices = parse_options(flags.options)
        except UserError as error:
            raise UserError(f"--options：{error}") from error


def _file(flags) -> None:
    if flags.input is None:
        return
    problems = []
    if flags.output is None:
        problems.append("--input 要與 --output 一起給")
    for name in ("input", "output"):
        path = Path(getattr(flags, name) or "x.csv")
        if name == "input" and not path.is_file():
            problems.append(f"--input {path}：沒有這個檔案")
        elif name == "input" and (way := WAYS_OUT.get(path.suffix.lower())):
            problems.append(f"--input {path}：{way}")
        elif not is_readable(path, ".txt") if name == "input" else path.suffix.lower() not in SUFFIXES:
            kind, kinds = path.suffix or "沒有副檔名", READABLE if name == "input" else SUFFIXES
            problems.append(f"--{name} {path}：不認得 {kind} 檔，要 {'、'.join(kinds)}")
        elif name == "output" and path.is_dir():
            problems.append(f"--output {path} 是一個資料夾，應為檔案")
        elif name == "output" and not writable(path.parent):
            problems.append(f"--output {path}：{path.parent} 不能寫入（唯讀、沒有權限，或不是資料夾）")
        elif name == "output" and len(os.fsencode(path.name)) > LONGEST_NAME - len(".part"):
            problems.append(f"--output {path}：檔名太長，作答時還要在後面加 .part")
    same = flags.output and os.path.realpath(flags.output) == os.path.realpath(flags.input)
    if same or (flags.output and _samefile(flags.input, flags.output)):
        problems.append(f"--output 與 --input 是同一個檔案：{flags.input}")
    if problems:
        raise UserError(problems)


def _samefile(one: str, other: str) -> bool:
    """True for two names of one file too."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _writing(flags) -> None:
    if flags.do_sample and flags.num_beams > 1:
        raise UserError(f"--num_beams {flags.num_beams} 與 --do_sample 不能一起用：束搜尋不抽樣")
    if flags.temperature == 0 and flags.do_sample:
        console.log("--temperature 0：就是 greedy，不抽樣")
    sampling = [name for name in ("temperature", "top_p", "seed") if name in flags.given]
    if sampling and not flags.do_sample:
        console.log(f"⚠️ {'、'.join('--' + name for name in sampling)} 沒有作用：抽樣要加 --do_sample")
    beams = [name for name in ("length_penalty", "early_stopping") if name in flags.given]
    if beams and flags.num_beams == 1:
        console.log(f"⚠️ {'、'.join('--' + name for name in beams)} 沒有作用：束搜尋要加 --num_beams 2 以上")


def decoding_of(flags):
    """How a causal model is to write. Imports torch."""
    from finetune.models.generation import Decoding

    more = {"top_k": flags.top_k} if "top_k" in flags.given else {}
    return Decoding(**more, **{name: getattr(flags, name) for name in WRITING})


def written_by(flags) -> list[tuple[str, Path]]:
    """The places that are written to, each with what a message calls it and its lock file."""
    from finetune.runtime import locks

    if flags.input is not None:
        return [(f"--output {flags.output}", locks.beside(flags.output))]
    if flags.exam is not None:
        folder = flags.report or default_folder(flags.exam)
        return [(f"--report {folder}", locks.beside(folder))]
    return []


def check_kind(flags, kind: str) -> None:
    """What was given for a model of another kind.

    Args:
        kind: of the model, one of KINDS.

    Raises:
        UserError: with the flags that this model has no use for.
    """
    writes, problems = kind == "causal", []
    only = {"classifier": "，只會分類", "choice": "，只答選擇題"}.get(kind, "")
    for names, kinds in FOR_KINDS.items():
        idle = "、".join("--" + name for name in names if name in flags.given)
        if idle and kind not in kinds:
            others = "、".join(KINDS[one] for one in kinds)
            problems.append(f"{idle} 用於{others}；{flags.model_path} 是{KINDS[kind]}{only}")
    if problems:
        raise UserError(problems)
    if writes and (flags.exam is not None or (flags.question is not None and flags.prompt is None)):
        tell_of_idle_writing(flags)
    if writes and "top_k" in flags.given and not flags.do_sample:
        console.log("⚠️ --top_k 沒有作用：抽樣要加 --do_sample")
    if not writes and flags.top_k == 0:
        raise UserError(f"--top_k 0：填空與分類要列出 1 到 {MOST_WORDS} 名")


def tell_of_idle_writing(flags) -> None:
    """Says which flags of writing were given where a causal model only chooses a letter."""
    if idle := "、".join("--" + name for name in WRITING if name in flags.given):
        console.log(f"⚠️ {idle} 沒有作用：選擇題不看寫作的旗標")


def _machine(flags) -> None:
    if flags.cpu and flags.precision == "fp16":
        raise UserError("--precision fp16：CPU 請用 bf16 或 fp32")


def default_folder(source: str) -> str:
    """./report_{name of the exam}"""
    return "report_" + (re.sub(r"[^\w.-]+", "_", Path(source).stem).strip("_.") or "exam")
