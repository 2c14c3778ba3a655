"""Values of the flags of inference.py as one typed object, and what follows from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from finetune.models.decoding import Decoding

T = TypeVar("T")
LONGEST_WORD = 4  # characters that one blank may become
MOST_WORDS = 1000  # that are listed
POOLINGS = ("mean", "cls", "max", "lasttoken")  # values of --pooling
BASE_MODEL = "base"  # value of --compare_with: the model before it was fine-tuned
GENERATION_FLAGS = (  # flags of text generation, by the names of generation.Decoding
    "max_new_tokens", "do_sample", "temperature", "top_p", "repetition_penalty", "num_beams",
    "length_penalty", "early_stopping", "seed", "min_p", "min_new_tokens", "no_repeat_ngram_size", "stop",
)  # fmt: skip
KINDS = {  # titles of the kinds of models, by the names of kinds.CLASSES
    "masked": "填空的遮罩模型", "causal": "因果模型", "classifier": "分類模型", "choice": "選擇題模型",
    "tagger": "序列標註模型", "extractor": "抽取式問答模型", "seq2seq": "文字轉換模型",
    "encoder": "沒有輸出層的編碼器",
}  # fmt: skip


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
    min_p: float  # 0: off
    min_new_tokens: int
    no_repeat_ngram_size: int  # 0: off
    stop: list[str]
    system_prompt: str | None
    # questions: with options, or about a passage
    question: str | None
    options: str | None
    context: str | None
    max_answer_length: int  # tokens
    scoring: str
    orders: str
    # whole files
    input: str | None
    text_column: str
    label_column: str
    output: str | None
    overwrite: bool
    strict: bool
    # vectors and figures
    embed: str | None
    pooling: str
    nearest: str | None
    hidden_states: bool
    draw: str | None
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
    # how an exam is asked
    protocol: str  # a name or a file, see prompts/protocol.py
    num_fewshot: int | None  # None: the protocol's
    prompt_format: str
    fewshot_as_multiturn: bool | None  # None: the protocol's
    chat_template_kwargs: list[tuple[str, Any]]
    log_prompts: bool
    # several runs
    repeat: int | None  # None: once
    compare: list[str] | None  # two files of predictions
    revisions: list[str] | None  # two revisions of --exam
    audit_keys: bool
    # a server
    served_model: str
    concurrency: int  # requests at once
    request_timeout: float  # seconds
    # serving
    serve: bool
    host: str
    port: int  # 0: a free one
    api_key: str | None  # where the keys are: env:NAME or a file
    cors_origin: list[str]
    max_queue: int  # requests that are accepted and not answered yet
    log_texts: bool
    watch: str | None
    drift: str | None  # a file of --watch
    drift_reference: str | None  # another one to compare it with; None: the run card's snapshot
    drift_bound: float
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


def required(value: T | None) -> T:
    """Return the value of a flag without which the job at hand would not have been chosen."""
    assert value is not None
    return value


def decoding_of(args: InferenceArgs) -> Decoding:
    """Return how a causal model chooses its next token.

    Raises:
        UserError: options that exclude one another.
    """
    options = {name: getattr(args, name) for name in GENERATION_FLAGS}
    if "top_k" in args.given:  # its default is for lists of words
        options["top_k"] = args.top_k
    return Decoding(**options)


def lock_targets(args: InferenceArgs) -> list[tuple[str, Path]]:
    """List the places that are written to, each with its name in messages and its lock file."""
    from finetune.runtime import locks

    if args.input is not None or (args.embed is not None and args.output is not None):
        assert args.output is not None  # see `_check_files`
        return [(f"--output {args.output}", locks.lock_path(args.output))]
    if args.exam is not None:
        folder = report_folder(args)
        return [(f"--report {folder}", locks.lock_path(folder))]
    if args.draw is not None:
        return [(f"--draw {args.draw}", locks.lock_path(args.draw))]
    if args.watch is not None:
        return [(f"--watch {args.watch}", locks.lock_path(args.watch))]
    if (args.compare is not None or args.drift is not None) and args.report:
        return [(f"--report {args.report}", locks.lock_path(args.report))]
    return []


def report_folder(args: InferenceArgs) -> str:
    """Return --report, or its default: report_{name of the exam}, in the current folder."""
    name = re.sub(r"[^\w.-]+", "_", Path(required(args.exam)).stem).strip("_.")
    return args.report or f"report_{name or 'exam'}"
