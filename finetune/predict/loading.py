"""Loading a model for use, and what can be known of a model and an exam before the weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.inference_args import BASE_MODEL, KINDS
from finetune.data.exam import Exam
from finetune.runtime import console, hub
from finetune.runtime.console import MODEL_FOLDER
from finetune.runtime.errors import UserError

if TYPE_CHECKING:  # torch waits until it is needed
    from finetune.predict.predictor import Predictor

FLAG = "--model_path"


def load_for_use(path: str, device, flag: str, **how):
    """Load a model as `inference.load_model` returns it.

    Args:
        path: a folder, or a name on the hub.
        device: a torch device or its name; None takes the GPU if there is one.
        flag: the flag that named it, for messages.
        how: as `models.loading.load` takes it.

    Raises:
        UserError: no such folder, no weights, a model of no kind that can be used here.
    """
    path = hub.located(path)
    hub.prepare_for(path)
    import torch

    from finetune.models.loading import load
    from finetune.models.run_card import RunCard
    from finetune.models.source_checks import base_of, check_source

    if path == MODEL_FOLDER and not Path(path).exists():
        raise UserError(
            f"{flag} {path}：還沒有模型。先訓練一個：python fine_tuning_llm.py --demo，或指定資料夾"
        )
    check_source(path, flag, how.get("from_scratch", False), how.get("allow_pickle", False))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    base = base_of(path)
    if base:
        hub.prepare_for(base)
    model, tokenizer = load(path, flag, **how)
    model = model.to(device).eval()
    model.run_card = RunCard.read(path)
    return model, tokenizer, device


def load_rival(name: str, mine: Predictor, flags) -> Predictor:
    """The model of --compare_with; `base` is the one that `mine` was taught from.

    A base that was random weights is made again from the configuration and the seed of the run card.

    Raises:
        finetune.runtime.errors.UserError: there is none, or it does not load.
    """
    scratch, seed, path = False, 0, name
    if name == BASE_MODEL:
        if mine.card is None:
            raise UserError(f"--compare_with {name}：{mine.name} 沒有 run_card.json，不知道底模是哪一個")
        scratch, seed = bool(mine.card.flags.get("from_scratch")), int(mine.card.flags.get("seed", 0))
        path = mine.name if scratch else mine.card.base_model
        if scratch:
            console.log("  微調前的底模是亂數權重（--from_scratch），依 run_card.json 的種子重建")
    how = {"from_scratch": scratch, "seed": seed, "allow_pickle": flags.allow_pickle}
    model, tokenizer, device = load_for_use(path, mine.device, "--compare_with", **how)
    if name == BASE_MODEL:
        model.run_card = mine.card  # asked in the same words, for the same method
    return predictor_for(model, tokenizer, device, flags.precision, path)


def predictor_for(model, tokenizer, device, precision: str = "", name: str = "") -> Predictor:
    from finetune.predict.causal import CausalLMPredictor
    from finetune.predict.classifier import ClassifierPredictor
    from finetune.predict.predictor import MaskedLMPredictor, MultipleChoicePredictor, kind_of

    if precision:
        set_precision(model, precision, device)
    kinds = {
        "masked": MaskedLMPredictor,
        "causal": CausalLMPredictor,
        "classifier": ClassifierPredictor,
        "choice": MultipleChoicePredictor,
    }
    found = kinds[kind_of(model)].of(model, tokenizer, device)
    found.name = name or found.name
    if precision or not found.precision:
        found.precision = precision or "auto"
        if found.precision == "auto":
            found.use_bf16()
    return found


def predictor_of_kind(kind: str, model, tokenizer, device) -> Predictor:
    """A model that must be of one kind. Raises UserError that says what it is, and what to call instead."""
    found = predictor_for(model, tokenizer, device)
    if found.kind != kind:
        able = {"masked": "填 [MASK]", "causal": "寫文章", "classifier": "分類"}[kind]
        better = {
            "masked": "predict_mask", "causal": "generate_text", "classifier": "classify",
            "choice": "qa_inference",
        }[found.kind]  # fmt: skip
        raise UserError(f"{found.name or '這個模型'} 是{KINDS[found.kind]}，不會{able}；請用 {better}")
    return found


def set_precision(model, wanted: str, device) -> None:
    """Weights are converted once; autocast would convert them again at every call."""
    from finetune.models.kinds import DTYPES

    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16：CPU 請用 bf16 或 fp32")
    if wanted != "auto":  # auto keeps the model as it is, see Examinee.use_bf16
        model.to(DTYPES[wanted])


def open_exam(flags, source: str, flag: str, on_bad_rows: str) -> Exam:
    """The built-in exam for `demo`, else what `exams.read_exam` finds; a hub that is away is asked once."""
    from finetune.data.exam import choose_rows, read_exam
    from finetune.demo import builtin

    if source == "demo":
        exam = builtin.exam()
        exam.questions = choose_rows(exam.questions, flags.subjects)
        return exam
    hub.prepare_for(source)
    return read_exam(source, flags.revision, flags.subjects, on_bad_rows, flag, flags.answers_from)


def is_classifier(path: str) -> bool:
    """Whether a model is one, by its configuration; what is wrong with that is said when it is loaded."""
    try:
        return _kind(path)[0] == "classifier"
    except UserError:
        return False


def exam_prompts(flags):
    """How the model of --model_path would write a question out.

    Raises:
        UserError: a classifier, which answers no questions; what is no model.
    """
    from finetune.models.run_card import RunCard
    from finetune.models.tokenizer import load_tokenizer, prompt_length
    from finetune.predict.causal import exam_prompts_for
    from finetune.predict.predictor import prompts_for

    kind, config, path = _kind(flags.model_path)
    if kind == "classifier":
        raise UserError(f"{FLAG} {path} 是{KINDS[kind]}，不答選擇題；不給 {FLAG}，--inspect 只看題庫本身")
    tokenizer, card = load_tokenizer(path, FLAG, kind), RunCard.read(path)
    wanted = flags.max_length if "max_length" in flags.given else None
    if kind == "causal":
        return exam_prompts_for(tokenizer, card, prompt_length(config, tokenizer, wanted or 1 << 30))
    return prompts_for(config, tokenizer, card, wanted)


def _kind(path: str):
    """(kind, configuration, folder or name) of a model. Raises UserError: what is no model."""
    from finetune.models.kinds import kind_of
    from finetune.models.loading import load_config
    from finetune.models.source_checks import check_source

    path = hub.located(path)
    check_source(path, FLAG, from_scratch=True)
    hub.prepare_for(path)
    config = load_config(path, FLAG)
    return kind_of(config), config, path
