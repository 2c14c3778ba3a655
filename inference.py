"""Use a model: fill [MASK], write, classify, answer multiple-choice questions, examine it, mark whole files.

    python inference.py --prompt "今天天氣很[MASK]。" --word_length 2
    python inference.py --question "太陽系最大的行星是？" --options "A:地球 B:木星 C:火星"
    python inference.py --model_path my_causal_model --prompt "請介紹臺灣的夜市。" --do_sample
    python inference.py --model_path my_classifier --prompt "這家店的服務很好。"
    python inference.py --input questions.csv --output answers.jsonl
    python inference.py --exam ikala/tmmluplus --split test --report report
    python inference.py --inspect my_exam.csv
    python inference.py                              # neither: ask and answer in the terminal

Order: 1 loading, 2 the questions one can ask, 3 main. Flags: finetune/cli/inference_args.py.
"""

import finetune  # noqa: F401  an older Python is told here which one is needed, before it meets newer words

# isort: split
import sys
from typing import TYPE_CHECKING

from finetune.cli.inference_args import check_kind, decoding_of, read_flags, written_by
from finetune.data.option_syntax import parse_options
from finetune.predict.loading import (
    exam_prompts,
    is_classifier,
    load_for_use,
    load_rival,
    open_exam,
    predictor_for,
    predictor_of_kind,
)
from finetune.runtime import console
from finetune.runtime.errors import UserError

__all__ = [
    "classify",
    "generate_text",
    "interactive_mode",
    "load_model",
    "parse_options",
    "predict_mask",
    "predict_words",
    "qa_inference",
]

if TYPE_CHECKING:  # heavy imports wait until the flags are read: --help answers at once
    pass
else:  # no `from __future__ import annotations`, which Python 3.6 cannot read
    Predictor = object

# ---- 1. loading --------------------------------------------------------------------------------------------


def load_model(model_path, device=None, allow_pickle=False):
    """Loads a model for use: masked, causal, classifier or multiple-choice, whole or as a LoRA adapter.

    Args:
        model_path: a folder in Hugging Face format, or a name on the hub.
        device: a torch device or its name; None takes the GPU if there is one.
        allow_pickle: weights may lie in a pickle; what else is in it is not run.

    Returns:
        (model, tokenizer, device). `model.run_card` holds how it was taught, None if it was not taught here.

    Raises:
        finetune.runtime.errors.UserError: no such folder, no weights, a model of none of these kinds.
    """
    return load_for_use(str(model_path), device, "--model_path", allow_pickle=allow_pickle)


# ---- 2. the questions one can ask --------------------------------------------------------------------------


def predict_mask(model, tokenizer, prompt, device, top_k=5):
    """The likeliest words for the first [MASK] of `prompt`; one is added at the end if there is none.

    Returns:
        list of at most `top_k` words, best first: ["好", "熱", …]
    """
    return predictor_of_kind("masked", model, tokenizer, device).fill_first(prompt, top_k)


def predict_words(model, tokenizer, prompt, device, top_k=5, word_length=2, candidates=None):
    """The likeliest words for the blanks of `prompt`.

    Several [MASK]s are filled jointly. A single one may become a word of 1 to `word_length` characters, or
    one of `candidates`, which are then ranked.

    Returns:
        list of at most `top_k` (word, score), or of all candidates, best first: [("晴朗", -0.42), …]; the
        score is the mean log-probability of its tokens in nats. Of several runs of [MASK] the words are
        joined by ….

    Raises:
        finetune.runtime.errors.UserError: a prompt that does not fit, a candidate this model does not know.
    """
    filler = predictor_of_kind("masked", model, tokenizer, device)
    blanks = filler.read(prompt)
    if blanks.meant:
        filler.tell_of(blanks)
    found = filler.words(prompt, top_k, word_length, candidates)
    return [(filling.word, filling.score) for filling in found]


def generate_text(model, tokenizer, prompts, device, **decoding):
    """What a causal model answers to each prompt; a model without a chat template goes on from it.

    Args:
        prompts: list of texts.
        decoding: max_new_tokens, do_sample, temperature, … as `finetune.models.generation.Decoding`.

    Returns:
        list of texts, in order.

    Raises:
        finetune.runtime.errors.UserError: no causal model; prompts that do not fit.
    """
    from finetune.models.generation import Decoding

    speaker = predictor_of_kind("causal", model, tokenizer, device)
    return speaker.generate([speaker.encode(prompt) for prompt in prompts], Decoding(**decoding))


def classify(model, tokenizer, texts, device, top_k=None):
    """The labels of texts, or of pairs of texts, with their probabilities.

    Args:
        texts: a list, each one a text or a pair (text, text). One that is too long for the model loses its
            end.
        top_k: labels of each; None lists all.

    Returns:
        of each text [(label, probability), …], best first. They add up to 1; of a multi-label model each
        label has its own, and 0.5 or more says that the text has it.

    Raises:
        finetune.runtime.errors.UserError: no classifier; a single text that is in no list; what is no text.
    """
    labeller = predictor_of_kind("classifier", model, tokenizer, device)
    if isinstance(texts, (str, tuple)):  # else a classifier of characters, or of the halves of a pair
        raise UserError("classify 要一串文字；只有一段就寫成 [文字]，一對句子寫成 [(甲, 乙)]")
    return [ranked[:top_k] for ranked in labeller.classify(texts)]


def qa_inference(model, tokenizer, question, options, device, top_k=3, scoring="auto", orders="cyclic"):
    """Answers a multiple-choice question.

    Args:
        options: {label: text}, 2 to 10 of them; labels are only names.
        scoring: `auto` (as the run card says, else `pll`; a causal model `letter`; a multiple-choice head
            by itself), or a name of finetune.prompts.scoring_methods.METHODS, of a causal model one
            of CAUSAL.
        orders: of `letter`: `1`, `cyclic` or `all`.

    Returns:
        list of at most `top_k` (label, text, score), best first; the score is a log-probability in nats. Its
        `tied` names the options that share the highest score, where several do: the first given comes first.

    Raises:
        finetune.runtime.errors.UserError: a classifier; a question or options that cannot be asked; by
            `generate`, a reply that names no option.
    """
    return predictor_for(model, tokenizer, device).rank(question, options, top_k, scoring, orders)


def interactive_mode(
    model, tokenizer, device, top_k=5, scoring="auto", orders="cyclic", word_length=1, decoding=None
):
    """Asks and answers, or classifies, until quit, exit, q or Ctrl-D. A wrong entry is explained and never
    ends it.
    """
    from finetune.models.generation import Decoding
    from finetune.predict.chat_repl import ChatRepl
    from finetune.predict.classifier_repl import ClassifierRepl
    from finetune.predict.repl import McqRepl, Repl

    def answer(question, options, method, order):
        return qa_inference(model, tokenizer, question, options, device, len(options), method, order)

    examinee = predictor_for(model, tokenizer, device)
    if examinee.is_causal:
        ChatRepl(examinee, answer, scoring, orders, decoding or Decoding()).run()
    elif examinee.kind == "classifier":
        ClassifierRepl(examinee, top_k).run()
    elif examinee.kind == "choice":
        McqRepl(examinee, answer).run()
    else:
        Repl(examinee, answer, top_k, scoring, orders, word_length).run()


# ---- 3. main -----------------------------------------------------------------------------------------------


def main(argv=None) -> int:
    """Runs the script. Returns its exit code: 0 done, 1 failed, 2 bad flag or input, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return console.run(lambda: answer(read_flags(argv)), debug="--debug" in argv)


def answer(flags) -> int | None:
    """The one thing asked for, with the places it writes to for itself alone; it ends in order when it is
    told to from outside.
    """
    from finetune.runtime import locks
    from finetune.runtime.signals import OUTSIDE, StopRequest

    with StopRequest(OUTSIDE), locks.held(written_by(flags)):
        return _answer(flags)


def _answer(flags) -> int | None:
    """A look at data, an exam, a file, a prompt, a question, the terminal."""
    from finetune.predict.loading import load_for_use, predictor_for

    if flags.inspect is not None:
        from finetune.data import corpus as text_corpus
        from finetune.data import corpus_report
        from finetune.predict.inspect_exam import show_exam
        from finetune.predict.inspect_labels import holds_labels, show_labels_report

        text, label = flags.text_column, flags.label_column
        if label or holds_labels(flags.inspect, text):
            return show_labels_report(flags.inspect, flags.json, text, label)
        if text or text_corpus.holds_texts(flags.inspect):
            return corpus_report.show_texts_report(flags.inspect, flags.json, text)
        exam = open_exam(flags, flags.inspect, "--inspect", "skip")
        return show_exam(flags, exam, lambda: exam_prompts(flags))
    exam = None
    sorts = flags.exam is not None and is_classifier(flags.model_path)
    if flags.exam is not None:
        from finetune.cli.inference_args import default_folder
        from finetune.predict.exam import run_exam_command, select_split
        from finetune.reports import report

        report.check_folder(flags.report or default_folder(flags.exam), "--report")
        if not sorts:
            exam = open_exam(flags, flags.exam, "--exam", flags.on_bad_rows)
            select_split(exam, flags.split)  # what is wrong with the data is said before a model is loaded
    world = None
    if flags.exam is not None or flags.input is not None:  # first of all: it says which GPU is this process's
        from finetune.runtime.distributed import Distributed

        world = Distributed.init(flags.cpu, doing="作答")
    from finetune.models import cpu

    where = world.device if world else "cpu" if flags.cpu else None
    cpu.tune_malloc()
    once = flags.prompt is not None or flags.question is not None
    how = {"quickly": once, "allow_pickle": flags.allow_pickle}
    model, tokenizer, device = load_for_use(flags.model_path, where, "--model_path", **how)
    examinee = predictor_for(model, tokenizer, device, flags.precision, flags.model_path)
    if examinee.bf16 and not once:
        console.log(cpu.choose_precision(model.config.hidden_size)[1])
    check_kind(flags, examinee.kind)
    if "scoring" in flags.given:
        examinee.method(flags.scoring)
    flags.decoding = decoding_of(flags)
    if exam is not None:
        run_exam_command(flags, exam, examinee, lambda name: load_rival(name, examinee, flags), world)
        world.shutdown()
    elif sorts:
        from finetune.predict import label_exam

        label_exam.run_label_exam(flags, examinee, world)
        world.shutdown()
    elif flags.input is not None:
        from finetune.predict.batch_file import answer_file

        code = answer_file(flags, examinee, world)
        world.shutdown()
        return code
    elif not console.is_main_process():
        return None  # one answer, however many processes a launcher started
    elif flags.prompt is None and flags.question is None:
        more = flags.scoring, flags.orders, flags.word_length, flags.decoding
        interactive_mode(model, tokenizer, device, flags.top_k, *more)
    else:
        if flags.prompt is not None:
            from finetune.predict.one_shot import show_prompt

            show_prompt(flags, examinee)
        if flags.question is not None:
            show_answer(flags, model, tokenizer, device)
    return None


def show_answer(flags, model, tokenizer, device) -> None:
    """The answer to --question."""
    from finetune.predict.repl import print_ranking

    options = flags.choices
    predictor_for(model, tokenizer, device).warn(flags.question, *options.values())
    ranked = qa_inference(
        model, tokenizer, flags.question, options, device, len(options), flags.scoring, flags.orders
    )
    if flags.json:
        best = ranked[0][0]
        record = {
            "question": flags.question,
            "answer": best if flags.answer_format == "letter" else list(options).index(best),
            "scores": {label: score for label, _, score in ranked},
            **({"tied": list(ranked.tied)} if ranked.tied else {}),
        }
        console.print_result(console.as_json(record))
    else:
        console.print_result(f"問題: {flags.question}\n\n預測結果（按可能性排序）:")
        print_ranking(ranked)


if __name__ == "__main__":
    console.exit_process(main())
