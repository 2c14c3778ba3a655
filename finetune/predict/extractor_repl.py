"""Interactive session with an extractor, and how its answers are printed: marked in their sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.encodings import open_text
from finetune.data.tables import read_table
from finetune.predict.extractor import LISTED, ExtractorPredictor
from finetune.predict.records import span_record
from finetune.predict.repl import Repl, decode_entry, int_between, typed_line
from finetune.predict.session import SessionSettings
from finetune.runtime.console import as_json, plain, print_result
from finetune.runtime.errors import UserError, reason
from finetune.runtime.file_types import is_readable
from finetune.runtime.strict_json import too_long

GREETING = """
============================================================
🤖 文章問答：答案是文章裡的一段{none}
  先貼上文章（可以好幾行，空行結束），或輸入 file 檔名
  再輸入問題；help：其他指令
  輸入 quit、exit 或 q：離開
============================================================"""
HELP = """
  （還沒有文章時）貼上文章，空行結束
  一個問題      在文章裡找答案，標在它的句子裡
  context       看現在的文章；context new 換一篇；context 後面接一段文字就改用它
  file 檔名     文章改用這個文字檔
  top N         列出前 N 個答案（現在 {top_k}，最多 {most}）
  quit          離開（也可按 Ctrl-D；Ctrl-C 只取消這一行）
"""
NEW = ("new", "clear", "新", "換", "重來", "清除")
MARKS = "。！？!?；;\n"  # ends of a sentence
AROUND = 60  # characters shown before and after an answer, at most
SHOWN = 600  # characters of a passage shown by `context`
LARGEST_FILE = 1 << 24  # bytes
COMMAND = re.compile(r"[/:\\]?(context|file|文章|檔案)(?:\s*[:：=]\s*|\s+)(.*)", re.IGNORECASE | re.DOTALL)
FILES, PASSAGES = ("file", "檔案"), ("context", "文章")


class ExtractorRepl(Repl[ExtractorPredictor]):
    """Session with an extractor; of the settings it uses `top_k`, the answers that are listed."""

    def __init__(self, predictor: ExtractorPredictor, settings: SessionSettings):
        super().__init__(predictor, None, min(settings.top_k, LISTED))
        self.context = ""
        self.greeting = GREETING.format(none="，也可能沒有答案" if predictor.may_be_none else "")
        self.commands = {"top": self._top}

    @property
    def input_prompt(self) -> str:  # type: ignore[override]  # it changes with what is expected
        """What is asked for: the passage first, then questions."""
        return "❓ 請輸入問題: " if self.context else "📄 請貼上文章（空行結束）: "

    def help(self) -> str:
        """Return the list of commands with the current settings."""
        return HELP.format(top_k=self.top_k, most=LISTED)

    def handle(self, entry: str) -> None:
        """Handle one entry: a command about the passage, another command, the passage or a question."""
        word = decode_entry(entry)
        match = COMMAND.fullmatch(entry)
        if match and match[1].lower() in FILES:
            self._use(read_passage(match[2]))
        elif match and match[1].lower() in PASSAGES:
            if decode_entry(match[2]) in NEW:
                self.context = ""
                print_result("  請貼上新的文章\n")
            elif self.context:
                self._use(match[2])
            else:
                self.respond(match[2])
        elif word in PASSAGES:
            self._show()
        elif word in FILES:
            raise UserError("file 後面要接檔名，例如 file 文章.txt")
        else:
            super().handle(entry)

    def respond(self, entry: str) -> None:
        """Take an entry as the beginning of the passage where there is none yet, else as a question.

        Raises:
            UserError: what is wrong with it.
        """
        if not self.context:
            lines = [entry]
            while line := self._next_line():
                lines.append(line)
            self._use("\n".join(lines))
            return
        answers = self.predictor.answer_pairs([(entry, self.context)], self.top_k)[0]
        self.predictor.warn(entry)
        print_result()
        print_answers(self.context, answers)
        print_result()

    def _next_line(self) -> str:
        """Return the next line of a passage; "" where it ends, by an empty line or the end of input."""
        try:
            return typed_line("").rstrip()
        except EOFError:
            return ""

    def _use(self, text: str) -> None:
        """Take a text as the passage. Raises UserError: it is empty or too long."""
        if not text.strip():
            raise UserError("文章是空的")
        if why := too_long(text):
            raise UserError(f"文章{why}")
        self.context = text.strip()
        print_result(f"  讀了文章，{len(self.context):,} 個字；現在可以發問\n")
        self.predictor.warn(self.context)

    def _show(self) -> None:
        if not self.context:
            print_result("  還沒有文章：貼上它（空行結束），或輸入 file 檔名\n")
            return
        more = f"\n  …（共 {len(self.context):,} 個字）" if len(self.context) > SHOWN else ""
        print_result(f"{self.context[:SHOWN]}{more}\n\n  換一篇：context new\n")

    def _top(self, value: str) -> None:
        self.top_k = int_between("top", value, 1, LISTED)
        print_result(f"  列出前 {self.top_k} 個答案")

    def _ask_question(self) -> None:
        raise UserError("這個模型不會答選擇題；請先給文章，再直接輸入問題")


def show_answer(flags: InferenceArgs, predictor: ExtractorPredictor) -> None:
    """Print the answer to --question from --context, a text, or `@FILE` for the text of a file."""
    question, context = required(flags.question), required(flags.context)
    if context.startswith("@"):
        context = read_passage(context[1:])
    top_k = flags.top_k if "top_k" in flags.given else None
    if flags.json:
        print_result(as_json(span_record(predictor, question, context, top_k)))
        predictor.warn(question, context)
        return
    answers = predictor.answer_pairs([(question, context)], top_k or 1)[0]
    predictor.warn(question, context)
    print_result(f"問題: {question}\n")
    print_answers(context, answers)


def print_answers(context: str, answers: list[dict[str, Any]]) -> None:
    """Print answers, best first: the first in its sentence."""
    first = answers[0]
    print_result(f"🔎 {_titled(first)}")
    if first["start"] is not None:
        print_result(f"   {plain(marked(context, first['start'], first['end']), lines=False)}")
    for place, answer in enumerate(answers[1:], 2):
        print_result(f"  {place}. {_titled(answer)}")


def _titled(answer: dict[str, Any]) -> str:
    """Return an answer with its probability and its place."""
    if answer["start"] is None:
        return f"（文章裡沒有答案） (機率: {answer['score']:.4f})"
    place = f"第 {answer['start'] + 1}–{answer['end']} 字"
    return f"{plain(answer['text'], lines=False)} (機率: {answer['score']:.4f}，{place})"


def marked(context: str, start: int, end: int) -> str:
    """Return the sentence around an answer, which stands in 【】."""
    begin = max((context.rfind(mark, 0, start) for mark in MARKS), default=-1) + 1
    stops = [at for at in (context.find(mark, end) for mark in MARKS) if at >= 0]
    stop = min(stops) + 1 if stops else len(context)
    if context[end - 1 : end] in MARKS:
        stop = end
    shown_from, shown_to = max(begin, start - AROUND), min(stop, end + AROUND)
    before = "…" * (shown_from > begin) + context[shown_from:start].lstrip()
    after = context[end:shown_to].rstrip() + "…" * (shown_to < stop)
    return f"{before}【{context[start:end]}】{after}"


def read_passage(name: str) -> str:
    """Return the text of a file, whatever its encoding.

    Raises:
        UserError: it is no text file, cannot be read, or is too large.
    """
    path = Path(name.strip().strip("'\"")).expanduser()
    if not path.is_file():
        raise UserError(f"文章的檔案 {path} 不存在，或不是檔案")
    if is_readable(path) and path.suffix.lower() not in (".txt", ".md"):
        rows = next((row for _, row in read_table(path)), {})
        columns = (
            f"（有 {'、'.join(map(str, list(rows)[:5]))} 等欄）" if isinstance(rows, dict) and rows else ""
        )
        raise UserError(f"{path} 是資料表{columns}，不是一篇文章；整個檔案請用 --input")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"文章的檔案 {path} 太大（上限 {LARGEST_FILE >> 20} MiB）")
        with open_text(path) as stream:
            text = stream.read()
    except (OSError, EOFError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"文章的檔案 {path} 讀不到（{why}）") from error
    if "\0" in text:
        raise UserError(f"文章的檔案 {path} 不是文字檔")
    return text.lstrip("\ufeff").strip()
