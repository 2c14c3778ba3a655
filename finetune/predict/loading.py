"""What can be known of an exam and of a model before the model's weights are loaded."""

from __future__ import annotations

from finetune.cli.inference_args import KINDS
from finetune.data.exam import Exam
from finetune.runtime.errors import UserError

FLAG = "--model_path"


def open_exam(flags, source: str, flag: str, on_bad_rows: str) -> Exam:
    """The built-in exam for `demo`, else what `exams.read_exam` finds; a hub that is away is asked once."""
    from finetune.data.exam import choose_rows, read_exam
    from finetune.demo import builtin
    from finetune.runtime import hub

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
    from finetune.predict.causal import asking_for
    from finetune.predict.predictor import prompts_for

    kind, config, path = _kind(flags.model_path)
    if kind == "classifier":
        raise UserError(f"{FLAG} {path} 是{KINDS[kind]}，不答選擇題；不給 {FLAG}，--inspect 只看題庫本身")
    tokenizer, card = load_tokenizer(path, FLAG, kind), RunCard.read(path)
    wanted = flags.max_length if "max_length" in flags.given else None
    if kind == "causal":
        return asking_for(tokenizer, card, prompt_length(config, tokenizer, wanted or 1 << 30))
    return prompts_for(config, tokenizer, card, wanted)


def _kind(path: str):
    """(kind, configuration, folder or name) of a model. Raises UserError: what is no model."""
    from finetune.models.kinds import kind_of
    from finetune.models.loading import check_source, load_config
    from finetune.runtime import hub

    path = hub.located(path)
    check_source(path, FLAG, from_scratch=True)
    hub.prepare_for(path)
    config = load_config(path, FLAG)
    return kind_of(config), config, path
