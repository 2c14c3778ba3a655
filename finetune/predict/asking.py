"""How the models of an exam are asked: --protocol, --num_fewshot, --prompt_format and their like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.exam import Exam
from finetune.data.known_exams import known_exam
from finetune.data.question import Question
from finetune.models.generation import Decoding
from finetune.predict.generative import GenerativePredictor
from finetune.predict.predictor import EncoderPredictor, Predictor
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts
from finetune.prompts.protocol import CHAT, CUT_STEM, OURS, load_protocol
from finetune.prompts.question_writer import Asking, Examples, choose_examples, our_asking
from finetune.prompts.scoring_methods import parse
from finetune.runtime.console import log
from finetune.runtime.errors import UserError


def asking_of(flags: InferenceArgs, has_template: bool) -> Asking:
    """Return the protocol with what the flags change of it.

    Args:
        has_template: the model has a chat template.

    Raises:
        UserError: a protocol that cannot be read, or has no such form; a model without a template.
    """
    protocol = load_protocol(flags.protocol)
    form = protocol.form_name(flags.prompt_format, has_template)
    multiturn = protocol.multiturn if flags.fewshot_as_multiturn is None else flags.fewshot_as_multiturn
    return Asking(
        protocol, form, flags.system_prompt or "", multiturn, dict(flags.chat_template_kwargs),
        protocol.num_fewshot if flags.num_fewshot is None else flags.num_fewshot,
    )  # fmt: skip


def ask_exam(flags: InferenceArgs, exam: Exam, predictor: Predictor, rows: Sequence[Question]) -> Asking:
    """Set how a model is asked the questions of an exam, examples included.

    Args:
        rows: the questions that will be asked.

    Raises:
        UserError: it cannot be asked so; examples for which some questions leave no room.
    """
    if isinstance(predictor, GenerativePredictor):
        asking = asking_of(flags, predictor.has_chat_template)
        _warn_of_idle_flags(flags, asking, predictor.has_chat_template)
    else:
        if flags.protocol != OURS:
            raise UserError(
                f"--protocol {flags.protocol}：{predictor.name or '這個模型'} 不是因果模型，"
                f"不會接著寫下去；請用 --protocol {OURS}（預設）"
            )
        asking = replace(asking_of(flags, True), format=CHAT)
    examples = choose_examples(example_rows(flags, exam), asking.num_fewshot)
    if isinstance(predictor, GenerativePredictor):
        predictor.ask(asking, examples, _reply_decoding(flags))
    elif isinstance(predictor, EncoderPredictor):
        predictor.prompts.examples = examples
    if examples:
        _say_short(examples, asking.num_fewshot, {row.subject for row in rows})
        if asking.protocol.too_long == CUT_STEM and predictor.prompts is not None:  # a server counts itself
            _check_room(predictor, rows, asking.num_fewshot, predictor.method(flags.scoring))
    return asking


def _warn_of_idle_flags(flags: InferenceArgs, asking: Asking, has_template: bool) -> None:
    """Warn of flags of conversations where there is none, or no example to make turns of."""
    in_turns = asking.format == CHAT and has_template
    if flags.chat_template_kwargs and not in_turns:
        log("⚠️ --chat_template_kwargs 沒有作用：這次沒有用到對話樣板")
    if flags.fewshot_as_multiturn is not None and (asking.format != CHAT or not asking.num_fewshot):
        why = "直接接在文字後面（raw）" if asking.format != CHAT else "沒有示範（--num_fewshot）"
        log(f"⚠️ --fewshot_as_multiturn 沒有作用：這次{why}")


def example_rows(flags: InferenceArgs, exam: Exam) -> Sequence[Question]:
    """Return the questions that examples are taken from: the dev rows, or the split an exam has for them."""
    known = known_exam(flags.exam or "")
    split = exam.split(known.shots if known else "dev")
    return exam.questions.get(split, []) if split != exam.test else []


def ask_plainly(flags: InferenceArgs, predictor: Predictor) -> None:
    """Set how a causal model is asked outside of an exam: our own prompt, with the flags' settings."""
    if isinstance(predictor, GenerativePredictor):
        kwargs = dict(flags.chat_template_kwargs)
        asking = replace(our_asking(), system_prompt=flags.system_prompt or "", template_kwargs=kwargs)
        predictor.ask(asking, {}, _reply_decoding(flags))


def _reply_decoding(flags: InferenceArgs) -> Decoding:
    """Return how replies are generated; without --max_new_tokens as long as the predictor's own are."""
    decoding = required(flags.decoding)
    return decoding if "max_new_tokens" in flags.given else replace(decoding, max_new_tokens=0)


def _say_short(examples: Examples, count: int, subjects: set[str]) -> None:
    """Log which subjects have fewer examples than --num_fewshot."""
    short = {subject: len(examples.get(subject, ())) for subject in sorted(subjects)}
    short = {subject: n for subject, n in short.items() if n < count}
    if short:
        named = "、".join(f"{subject or '未註明科目'} {n} 題" for subject, n in list(short.items())[:5])
        more = " 等" if len(short) > 5 else ""
        log(f"--num_fewshot {count}：{len(short)} 科的示範不到 {count} 題（{named}{more}），有幾題就給幾題")


def _check_room(predictor: Predictor, rows: Sequence[Question], count: int, method: str) -> None:
    """Refuse examples for which some questions leave no room; say how many, and how many examples do fit."""
    prompts = predictor.prompts
    assert prompts is not None
    bare = _with_examples(prompts, {})
    fitting = [row for row in rows if _fits(bare, row, method)]
    misfits = [row for row in fitting if not _fits(prompts, row, method)]
    if not misfits:
        return
    examples = _examples_of(prompts)
    most = next(
        k
        for k in reversed(range(count))
        if k == 0 or all(_fits(_with_examples(prompts, _first(examples, k)), row, method) for row in fitting)
    )
    way = f"最多 --num_fewshot {most}" if most else "這個模型的長度放不下示範，請不加這個旗標"
    raise UserError(
        f"--num_fewshot {count}：{len(rows)} 題中有 {len(misfits)} 題加上示範就超過 {prompts.max_length} 個 "
        f"token；{way}"
    )


def _first(examples: Examples, count: int) -> Examples:
    return {subject: rows[:count] for subject, rows in examples.items()}


def _examples_of(prompts: ExamPrompts | CausalExamPrompts) -> Examples:
    return prompts.examples if isinstance(prompts, ExamPrompts) else prompts.writer.examples


def _with_examples(
    prompts: ExamPrompts | CausalExamPrompts, examples: Examples
) -> ExamPrompts | CausalExamPrompts:
    if isinstance(prompts, ExamPrompts):
        return replace(prompts, examples=examples)
    return replace(prompts, writer=replace(prompts.writer, examples=examples))


def _fits(prompts: ExamPrompts | CausalExamPrompts, question: Question, method: str) -> bool:
    if isinstance(prompts, ExamPrompts):
        return prompts.fits(question, parse(method).by_letter)
    return prompts.fits(question)
