"""What can be known of an exam and of a model before the model's weights are loaded."""

from __future__ import annotations

from .errors import UserError
from .exams import Exam
from .inference_flags import KINDS

FLAG = "--model_path"


def open_exam(flags, source: str, flag: str, on_bad_rows: str) -> Exam:
    """The built-in exam for `demo`, else what `exams.read_exam` finds; a hub that is away is asked once."""
    from . import demo, hub
    from .exams import choose_rows, read_exam

    if source == "demo":
        exam = demo.exam()
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
    from . import tokenizing
    from .examinee import prompts_for
    from .run_card import RunCard
    from .speaker import asking_for

    kind, config, path = _kind(flags.model_path)
    if kind == "classifier":
        raise UserError(f"{FLAG} {path} 是{KINDS[kind]}，不答選擇題；不給 {FLAG}，--inspect 只看題庫本身")
    tokenizer, card = tokenizing.load_tokenizer(path, FLAG, kind), RunCard.read(path)
    wanted = flags.max_length if "max_length" in flags.given else None
    if kind == "causal":
        return asking_for(tokenizer, card, tokenizing.prompt_length(config, tokenizer, wanted or 1 << 30))
    return prompts_for(config, tokenizer, card, wanted)


def _kind(path: str):
    """(kind, configuration, folder or name) of a model. Raises UserError: what is no model."""
    from . import hub, models
    from .kinds import kind_of

    path = hub.located(path)
    models.check_source(path, FLAG, from_scratch=True)
    hub.prepare_for(path)
    config = models.load_config(path, FLAG)
    return kind_of(config), config, path
