"""Load models and exams for prediction, and read what a model is before its weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from finetune.cli.inference_args import BASE_MODEL, KINDS, InferenceArgs
from finetune.data.exam import Exam
from finetune.predict.abilities import ABILITIES, ability
from finetune.runtime import console, hub
from finetune.runtime.console import MODEL_FOLDER
from finetune.runtime.errors import UserError
from finetune.runtime.server_address import is_server

if TYPE_CHECKING:  # torch waits until it is needed
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from finetune.models.loading import LoadOptions
    from finetune.predict.causal import CausalLMPredictor
    from finetune.predict.classifier import ClassifierPredictor
    from finetune.predict.predictor import LocalPredictor, MaskedLMPredictor, Predictor
    from finetune.prompts.causal_exam import CausalExamPrompts
    from finetune.prompts.exam import ExamPrompts
    from finetune.runtime.distributed import Distributed

FLAG = "--model_path"


def load_for_use(
    path: str, device: torch.device | str | None, flag: str, options: LoadOptions | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, torch.device]:
    """Load a model as `inference.load_model` returns it.

    Args:
        path: a folder, or a name on the hub.
        device: a torch device or its name; None takes the GPU if there is one.
        flag: the flag that named it, for messages.
        options: as `models.loading.load` takes them; None are the defaults.

    Raises:
        UserError: no such folder, no weights, a model of no kind that can be used here.
    """
    path = hub.resolve_cache_folder(path)
    hub.prepare_for(path)
    import torch

    from finetune.models.loading import LoadOptions, load
    from finetune.models.run_card import RunCard
    from finetune.models.source_checks import base_of, check_source

    if path == MODEL_FOLDER and not Path(path).exists():
        raise UserError(
            f"{flag} {path}：還沒有模型。"
            f"先訓練一個：{console.command('fine_tuning_llm.py')} --demo，或指定資料夾"
        )
    options = options or LoadOptions()
    check_source(path, flag, options.from_scratch, options.allow_pickle)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    base = base_of(path)
    if base:
        hub.prepare_for(base)
    model, tokenizer = load(path, flag, options)
    model = model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types
    model.run_card = RunCard.read(path)
    model.loaded_from = str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_dir() else path
    return model, tokenizer, device


def open_predictor(flags: InferenceArgs, world: Distributed | None) -> Predictor:
    """Load the model of --model_path, or reach it on its server.

    Args:
        world: the ranks; None for a single answer or a session.

    Raises:
        UserError: it does not load; several ranks for a server.
        RunError: the server does not answer.
    """
    if is_server(flags.model_path):
        if world and world.size > 1:
            raise UserError(
                f"{FLAG} {flags.model_path}：伺服器上的模型只要一個程序；請直接執行 inference.py，"
                "同時送出幾個請求由 --concurrency 決定"
            )
        from finetune.predict.served import open_server

        return open_server(flags, flags.model_path, FLAG, flags.served_model)
    from finetune.models import cpu
    from finetune.models.loading import LoadOptions

    where = world.device if world else "cpu" if flags.cpu else None
    cpu.tune_malloc()
    single_use = flags.prompt is not None or flags.question is not None
    options = LoadOptions(single_use=single_use, allow_pickle=flags.allow_pickle)
    model, tokenizer, device = load_for_use(flags.model_path, where, FLAG, options)
    predictor = predictor_for(model, tokenizer, device, flags.precision, flags.model_path)
    predictor.use_flags(flags)
    if predictor.bf16 and not single_use:
        console.log(cpu.choose_precision(model.config.hidden_size)[1])
    return predictor


def load_comparison_model(name: str, predictor: Predictor, flags: InferenceArgs) -> Predictor:
    """Load the model of --compare_with; `base` is the one that `predictor` was fine-tuned from.

    A base that was randomly initialized is made again from the configuration and the seed of the run card.

    Raises:
        finetune.runtime.errors.UserError: there is none, or it does not load.
    """
    from finetune.models.loading import LoadOptions

    if is_server(name):
        from finetune.predict.served import open_server

        return open_server(flags, name, "--compare_with", "")
    from_scratch, seed, path = False, 0, name
    if name == BASE_MODEL:
        card = predictor.card
        if card is None:
            raise UserError(f"--compare_with {name}：{predictor.name} 沒有 run_card.json，不知道底模是哪一個")
        from_scratch, seed = bool(card.flags.get("from_scratch")), int(card.flags.get("seed", 0))
        path = predictor.name if from_scratch else card.base_model
        if from_scratch:
            console.log("  微調前的底模是隨機初始化的權重（--from_scratch），依 run_card.json 的種子重建")
    kind = "seq2seq" if predictor.kind == "seq2seq" else ""  # BART's base would fill [MASK]
    options = LoadOptions(from_scratch, seed, kind, flags.allow_pickle)
    where = "cpu" if flags.cpu else None if is_server(flags.model_path) else predictor.device
    model, tokenizer, device = load_for_use(path, where, "--compare_with", options)
    if name == BASE_MODEL:
        # The same prompts, for the same method.
        model.run_card = predictor.card  # type: ignore[assignment]  # torch types attributes as modules
    return predictor_for(model, tokenizer, device, flags.precision, path)


def predictor_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str,
    precision: str = "",
    name: str = "",
) -> LocalPredictor:
    """Return the predictor of a model, of the class that its kind has.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`; "" keeps what was set before, at first `auto`.
        name: what reports call the model; "" keeps the name.
    """
    from finetune.predict.predictor import kind_of_model

    if precision:
        set_precision(model, precision, device)
    predictor: LocalPredictor = ability(kind_of_model(model), "predictor").of(model, tokenizer, device)
    predictor.name = name or predictor.name
    if precision or not predictor.precision:
        predictor.precision = precision or "auto"
        if predictor.precision == "auto":
            predictor.use_bf16()
    return predictor


@overload
def predictor_of_kind(
    kind: Literal["masked"],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str,
) -> MaskedLMPredictor: ...
@overload
def predictor_of_kind(
    kind: Literal["causal"],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str,
) -> CausalLMPredictor: ...
@overload
def predictor_of_kind(
    kind: Literal["classifier"],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str,
) -> ClassifierPredictor: ...
@overload
def predictor_of_kind(
    kind: str | tuple[str, ...],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str,
) -> Any: ...


def predictor_of_kind(
    kind: str | tuple[str, ...],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str,
) -> Predictor:
    """Return the predictor of a model that must be of one kind, or of one of several.

    Raises:
        UserError: with the kind it is, and the function to call instead.
    """
    predictor = predictor_for(model, tokenizer, device)
    kinds = (kind,) if isinstance(kind, str) else kind
    if predictor.kind not in kinds:
        instead = ABILITIES[predictor.kind].call
        raise UserError(
            f"{predictor.name or '這個模型'} 是{KINDS[predictor.kind]}，"
            f"不會{ABILITIES[kinds[0]].verb}；請用 {instead}"
        )
    return predictor


def set_precision(model: PreTrainedModel, precision: str, device: torch.device | str) -> None:
    """Convert the weights to a precision, once: autocast would convert them again at every call.

    Raises:
        UserError: fp16 on a CPU.
    """
    import torch

    from finetune.models.kinds import DTYPES

    if precision == "fp16" and torch.device(device).type == "cpu":
        raise UserError("--precision fp16：CPU 請用 bf16 或 fp32")
    if precision != "auto":  # auto keeps the model as it is, see Predictor.use_bf16
        model.to(DTYPES[precision])  # type: ignore[arg-type]  # transformers wraps `to` without its types


def open_exam(flags: InferenceArgs, source: str, flag: str, on_bad_rows: str) -> Exam:
    """Read an exam: the built-in one for `demo`, else what `data.exam.read_exam` finds."""
    from finetune.data.exam import choose_rows, read_exam
    from finetune.demo import builtin

    if source == "demo":
        exam = builtin.exam()
        exam.questions = choose_rows(exam.questions, flags.subjects)
        return exam
    hub.prepare_for(source)
    return read_exam(source, flags.revision, flags.subjects, on_bad_rows, flag, flags.answers_from)


def reads_own_exam(path: str) -> bool:
    """Return True for a model that is not evaluated on questions: a classifier, a tagger and others.

    It is told by the configuration; errors wait until the model is loaded.
    """
    if is_server(path):
        return False
    try:
        return bool(ABILITIES[_kind(path)[0]].exam)
    except UserError:
        return False


def exam_prompts(flags: InferenceArgs) -> ExamPrompts | CausalExamPrompts:
    """Build the exam prompts of the model of --model_path, without its weights.

    Raises:
        UserError: a classifier, which answers no questions; what is no model.
    """
    from finetune.models.run_card import RunCard
    from finetune.models.tokenizer import load_tokenizer, prompt_length
    from finetune.predict.causal import exam_prompts_for
    from finetune.predict.predictor import prompts_for

    if is_server(flags.model_path):
        raise UserError(
            f"{FLAG} {flags.model_path}：伺服器上的模型沒有 tokenizer 可看長度；"
            f"{FLAG} 請給資料夾或 hub 上的名稱，或不給，只看題庫本身"
        )
    kind, config, path = _kind(flags.model_path)
    if kind not in ("masked", "causal", "choice"):
        raise UserError(f"{FLAG} {path} 是{KINDS[kind]}，不答選擇題；不給 {FLAG}，--inspect 只看題庫本身")
    tokenizer, card = load_tokenizer(path, FLAG, kind), RunCard.read(path)
    max_length = flags.max_length if "max_length" in flags.given else None
    if kind == "causal":
        return exam_prompts_for(tokenizer, card, prompt_length(config, tokenizer, max_length or 1 << 30))
    return prompts_for(config, tokenizer, card, max_length)


def _kind(path: str) -> tuple[str, PreTrainedConfig, str]:
    """Return (kind, configuration, folder or name) of a model. Raises UserError: what is no model."""
    from finetune.models.kinds import kind_of
    from finetune.models.loading import load_config
    from finetune.models.source_checks import check_source

    path = hub.resolve_cache_folder(path)
    check_source(path, FLAG, from_scratch=True)
    hub.prepare_for(path)
    config = load_config(path, FLAG)
    return kind_of(config), config, path
