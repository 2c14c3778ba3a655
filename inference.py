"""Predict with a model: fill [MASK], chat, classify, tag, answer questions, evaluate on exams, process files.

    python inference.py --prompt "今天天氣很[MASK]。" --word_length 2
    python inference.py --question "太陽系最大的行星是？" --options "A:地球 B:木星 C:火星"
    python inference.py --model_path my_causal_model --prompt "請介紹臺灣的夜市。" --do_sample
    python inference.py --model_path my_classifier --prompt "這家店的服務很好。"
    python inference.py --model_path my_tagger --prompt "王小明住在臺北。"
    python inference.py --model_path my_reader --question "誰住在臺北？" --context "王小明住在臺北。"
    python inference.py --input questions.csv --output answers.jsonl
    python inference.py --embed texts.csv --output vectors.parquet
    python inference.py --exam ikala/tmmluplus --split test --report report
    python inference.py --inspect my_exam.csv
    python inference.py --draw figures               # the model as five figures
    python inference.py --compare report_a report_b  # two evaluations, question by question
    python inference.py --serve                      # an API and a page on http://127.0.0.1:8000
    python inference.py                              # without any of these: an interactive session

Order: 1 loading, 2 prediction functions, 3 main. Flags: finetune/cli/inference_parser.py.
"""

import finetune  # noqa: F401  refuses an older Python with a clear message, before it meets newer syntax

# isort: split
import sys
from collections.abc import Iterable, Mapping

from finetune.cli.inference_args import (
    InferenceArgs,
    decoding_of,
    lock_targets,
    report_folder,
    required,
)
from finetune.cli.inference_checks import check_kind, parse_args
from finetune.data.option_syntax import parse_options
from finetune.predict.abilities import ability
from finetune.predict.loading import (
    load_comparison_model,
    load_for_use,
    open_exam,
    open_predictor,
    predictor_for,
    predictor_of_kind,
    reads_own_exam,
)
from finetune.runtime import console
from finetune.runtime.errors import UserError
from finetune.runtime.server_address import is_server

__all__ = [
    "answer_span",
    "classify",
    "embed",
    "generate_text",
    "hidden_states",
    "interactive_mode",
    "load_model",
    "parse_options",
    "predict_mask",
    "predict_words",
    "qa_inference",
    "serve",
    "tag",
]

# ---- 1. loading --------------------------------------------------------------------------------------------


def load_model(model_path, device=None, allow_pickle=False):
    """Load a model for prediction: masked, causal, classifier or multiple-choice, whole or as a LoRA adapter.

    Args:
        model_path: a folder in Hugging Face format, or a name on the hub.
        device: a torch device or its name; None takes the GPU if there is one.
        allow_pickle: weights may be in a pickle; other code in it is not run.

    Returns:
        (model, tokenizer, device). `model.run_card` describes the training run; None if it was not trained
        here.

    Raises:
        finetune.runtime.errors.UserError: no such folder, no weights, a model of none of these kinds.
    """
    from finetune.models.loading import LoadOptions

    options = LoadOptions(allow_pickle=allow_pickle)
    return load_for_use(str(model_path), device, "--model_path", options)


# ---- 2. prediction functions -------------------------------------------------------------------------------


def predict_mask(model, tokenizer, prompt, device, top_k=5):
    """Return the likeliest words for the first [MASK] of `prompt`, or at its end if there is none.

    Returns:
        list of at most `top_k` words, best first: ["好", "熱", …]
    """
    return predictor_of_kind("masked", model, tokenizer, device).fill_first(prompt, top_k)


def predict_words(  # noqa: PLR0913  a public name: its parameters stay
    model, tokenizer, prompt, device, top_k=5, word_length=2, candidates=None
):
    """Return the likeliest words for the blanks of `prompt`.

    Several [MASK]s are filled jointly. A single one may become a word of 1 to `word_length` characters, or
    one of `candidates`, which are then ranked.

    Returns:
        list of at most `top_k` (word, score), or of all candidates, best first: [("晴朗", -0.42), …]; the
        score is the mean log-probability of its tokens in nats. Of several runs of [MASK] the words are
        joined by ….

    Raises:
        finetune.runtime.errors.UserError: a prompt that does not fit, a candidate the model does not know.
    """
    predictor = predictor_of_kind("masked", model, tokenizer, device)
    blanks = predictor.read(prompt)
    if blanks.lookalike:
        predictor.log_blanks(blanks)
    fillings = predictor.words(prompt, top_k, word_length, candidates)
    return [(filling.word, filling.score) for filling in fillings]


def generate_text(model, tokenizer, prompts, device, system_prompt=None, **decoding):
    """Generate a causal model's reply to each prompt; a model without a chat template continues it.

    An encoder-decoder such as T5 writes its output for each text.

    Args:
        prompts: list of texts.
        system_prompt: what stands before each of them, in a conversation; None for nothing.
        decoding: max_new_tokens, do_sample, temperature, … as `finetune.models.generation.Decoding`.

    Returns:
        list of texts, in order; each has an attribute `truncated`, True where `max_new_tokens` or the model's
        room ended it.

    Raises:
        finetune.runtime.errors.UserError: no causal model; prompts that do not fit; a system prompt for a
            model without a chat template.
    """
    from finetune.models.generation import Decoding

    predictor = predictor_of_kind(("causal", "seq2seq"), model, tokenizer, device)
    prompts = _listed("generate_text", prompts)
    ids = [predictor.encode(predictor.with_system(prompt, system_prompt)) for prompt in prompts]
    return predictor.generate(ids, Decoding(**decoding))


def classify(model, tokenizer, texts, device, top_k=None):
    """Classify texts, or pairs of texts.

    Args:
        texts: a list, each one a text or a pair (text, text). One that is too long for the model loses its
            end.
        top_k: labels of each; None lists all.

    Returns:
        for each text [(label, probability), …], best first. They add up to 1; of a multi-label model each
        label has its own, and 0.5 or more means that the text has it.

    Raises:
        finetune.runtime.errors.UserError: no classifier; a single text that is in no list; what is no text.
    """
    predictor = predictor_of_kind("classifier", model, tokenizer, device)
    if isinstance(texts, (str, tuple)):  # its characters, or the halves of a pair, would be classified
        raise UserError("classify 要一串文字；只有一段就寫成 [文字]，一對句子寫成 [(甲, 乙)]")
    return [ranked[:top_k] for ranked in predictor.classify(_listed("classify", texts))]


def _listed(name, texts):
    """Return texts as a list. Raises UserError for what is none, such as a single text."""
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise UserError(f"{name} 要一串文字；只有一段就寫成 [文字]")
    return list(texts)


def tag(model, tokenizer, texts, device):
    """Mark spans in texts: named entities, words or parts of speech, whatever the model was trained on.

    Args:
        texts: a list of texts of any length.

    Returns:
        for each text its spans in order, as dicts: `start`, `end` (characters of the text, end excluded),
        `label`, `text`, `score` (the lowest probability among its tags).

    Raises:
        finetune.runtime.errors.UserError: no tagger; a single text that is in no list; what is no text.
    """
    predictor = predictor_of_kind("tagger", model, tokenizer, device)
    return predictor.tag(_listed("tag", texts))


def answer_span(model, tokenizer, context, question, device):
    """Answer a question with a part of a passage.

    Args:
        context: the passage, of any length.

    Returns:
        dict: `text`, `start`, `end` (characters of the passage, end excluded), `score` (the probability of
        the span among those that were considered). The text is "" and the places are None where a model
        that was trained on questions without an answer finds none.

    Raises:
        finetune.runtime.errors.UserError: no extractor; a question that leaves no room for the passage.
    """
    return predictor_of_kind("extractor", model, tokenizer, device).answer(question, context)


def embed(model, tokenizer, texts, device, pooling=None):
    """Return a vector for each text, float32 [N, H].

    Args:
        texts: a list of texts; one that is too long for the model loses its end.
        pooling: `mean`, `cls`, `max` or `lasttoken`; None as the model brings it, else `mean`.

    Raises:
        finetune.runtime.errors.UserError: a single text that is in no list; what is no text, or empty; a
            model that brings a pooling which is not known here.
    """
    from finetune.predict.embedder import embed_texts

    return embed_texts(model, tokenizer, _listed("embed", texts), device, pooling)


def hidden_states(model, tokenizer, text, device):
    """Return what every layer of a model's body makes of each of the T tokens of a text.

    Returns:
        dict: `tokens` and `input_ids`, lists of T; `last_hidden_state`, float32 [T, H], as transformers'
        AutoModel computes it (of an encoder-decoder its encoder); `layers`, a list of float32 [T, H]: the
        embeddings, then the output of each layer.

    Raises:
        finetune.runtime.errors.UserError: what is no text, or empty; a model that keeps no hidden states.
    """
    from finetune.predict.hidden_states import hidden_states as compute

    return compute(model, tokenizer, text, device)


def qa_inference(  # noqa: PLR0913  a public name: its parameters stay
    model, tokenizer, question, options, device, top_k=3, scoring="auto", orders="cyclic"
):
    """Answer a multiple-choice question.

    Args:
        options: {label: text}, 2 to 10 of them; labels are only names.
        scoring: `auto` (as the run card says, else `pll`; a causal model `letter`; a multiple-choice model
            its own head), or a name of finetune.prompts.scoring_methods.METHODS, of a causal model one
            of CAUSAL.
        orders: option orders of `letter`: `1`, `cyclic` or `all`.

    Returns:
        list of at most `top_k` (label, text, score), best first; the score is a log-probability in nats. Its
        `tied` names the options that share the highest score, where several do: the first given comes first.

    Raises:
        finetune.runtime.errors.UserError: a classifier; a question or options that cannot be scored; by
            `generate`, a reply that names no option.
    """
    return predictor_for(model, tokenizer, device).rank(question, options, top_k, scoring, orders)


def interactive_mode(  # noqa: PLR0913  a public name: its parameters stay
    model, tokenizer, device, top_k=5, scoring="auto", orders="cyclic", word_length=1, decoding=None,
    system_prompt=None,
):  # fmt: skip
    """Run an interactive session until quit, exit, q or Ctrl-D; a wrong entry does not end it."""
    from finetune.models.decoding import GREEDY
    from finetune.predict.session import SessionSettings, run_session

    settings = SessionSettings(top_k, scoring, orders, word_length, decoding or GREEDY, system_prompt)
    run_session(predictor_for(model, tokenizer, device), settings)


def serve(  # noqa: PLR0913  a public name: its parameters stay
    model, tokenizer, device, host="127.0.0.1", port=8000, **settings
):
    """Serve a model over HTTP until a signal ends the process: an API, a page, metrics.

    Args:
        host: only this machine reaches 127.0.0.1; any other address needs `api_keys`.
        port: 0 takes a free one.
        settings: name, api_keys, max_queue, … as `finetune.serving.settings.ServerSettings`.

    Raises:
        finetune.runtime.errors.UserError: no key for an address that others reach; the libraries of
            requirements-serve.txt are not installed.
    """
    from finetune.serving.server import run_server
    from finetune.serving.settings import ServerSettings

    predictor = predictor_for(model, tokenizer, device)
    run_server(predictor, ServerSettings(settings.pop("name", "model"), host, port, **settings))


# ---- 3. main -----------------------------------------------------------------------------------------------


def main(argv=None) -> int:
    """Run the script. Returns its exit code: 0 done, 1 failed, 2 bad flag or input, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return console.run(lambda: run(parse_args(argv)), debug="--debug" in argv)


def run(flags: InferenceArgs) -> int | None:
    """Do what the flags ask for, while no other process writes to the same output.

    Returns:
        the exit code; None is 0, and 3 a drift.
    """
    from finetune.runtime import locks
    from finetune.runtime.signals import EXTERNAL_SIGNALS, StopRequest

    with StopRequest(EXTERNAL_SIGNALS), locks.hold_locks(lock_targets(flags)):
        if flags.compare is not None:
            from finetune.predict.compare_files import compare_files

            compare_files(flags)
            return None
        if flags.drift is not None:
            from finetune.predict.drift_command import run_drift_command

            return run_drift_command(flags)
        if flags.draw is not None:
            from finetune.predict.draw import draw_figures

            draw_figures(flags)
            return None
        if flags.embed is not None or flags.hidden_states:
            from finetune.predict.embed_command import run_embed_command

            return run_embed_command(flags)
        if flags.inspect is not None:
            from finetune.predict.inspect_command import inspect_data

            return inspect_data(flags)
        return predict(flags)


def predict(flags: InferenceArgs) -> int | None:
    """Load the model and evaluate it on an exam, process a file, answer a prompt or a question, or chat."""
    exam = None if flags.exam is None else read_exam(flags)
    world = None
    if flags.exam is not None or flags.input is not None:  # first: it decides the GPU of this rank
        from finetune.runtime.distributed import Distributed

        world = Distributed.init(flags.cpu or is_server(flags.model_path), doing="作答")
    predictor = open_predictor(flags, world)
    check_kind(flags, predictor.kind)
    flags.decoding = decoding_of(flags)
    if predictor.is_causal:
        from finetune.predict.asking import ask_plainly

        ask_plainly(flags, predictor)
    if "scoring" in flags.given and flags.exam is None:  # of an exam once it is known how it is asked
        predictor.method(flags.scoring)
    if flags.serve:
        from finetune.serving.server import serve_with_flags

        serve_with_flags(predictor, flags)
        return None
    if world:
        code = run_batch(flags, predictor, exam, world)
        predictor.log_summary()
        world.shutdown()
        return code
    if not console.is_main_process():
        return None  # one answer, however many processes a launcher started
    if flags.prompt is None and flags.question is None:
        from finetune.predict.session import SessionSettings, run_session

        settings = (flags.top_k, flags.scoring, flags.orders, flags.word_length)
        run_session(predictor, SessionSettings(*settings, required(flags.decoding), flags.system_prompt))
        return None
    if flags.prompt is not None or flags.context is not None:
        from finetune.predict.one_shot import show_prompt

        show_prompt(flags, predictor)
    if flags.options is not None:
        from finetune.predict.one_shot import show_answer

        show_answer(flags, predictor)
    return None


def read_exam(flags: InferenceArgs):
    """Read the exam of --exam, so that what is wrong with it is reported before a model is loaded.

    Returns:
        the exam; None for a model that reads rows with their right answers instead.
    """
    from finetune.predict.exam import select_split
    from finetune.predict.revision_exam import open_revisions
    from finetune.reports import report

    reads_rows = reads_own_exam(flags.model_path)
    report.check_folder(report_folder(flags), "--report")
    if reads_rows:
        return None
    if flags.revisions:
        return open_revisions(flags)
    exam = open_exam(flags, required(flags.exam), "--exam", flags.on_bad_rows)
    select_split(exam, flags.split)
    return exam


def run_batch(flags: InferenceArgs, predictor, exam, world) -> int | None:
    """Evaluate on the exam or on rows with right answers, or answer the file of --input, on all ranks.

    Returns:
        the exit code; None is 0.
    """
    if exam is not None:
        from finetune.predict.exam import run_exam_command
        from finetune.predict.kept_answers import resumable

        with resumable(predictor):
            run_exam_command(
                flags, exam, predictor, lambda name: load_comparison_model(name, predictor, flags), world
            )
        return None
    if flags.exam is not None:
        ability(predictor.kind, "exam")(flags, predictor, world)
        return None
    from finetune.predict.batch_file import answer_file

    return answer_file(flags, predictor, world)


def run_script() -> None:
    """Run `main` and end the process with its exit code: the entry point of the installed command."""
    console.exit_process(main())


if __name__ == "__main__":
    run_script()
