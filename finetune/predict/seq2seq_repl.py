"""Interactive session with an encoder-decoder, and how its output for one text is printed."""

from __future__ import annotations

from dataclasses import replace

from finetune.cli.inference_args import InferenceArgs, required
from finetune.models.decoding import Decoding
from finetune.predict.decoding_repl import DecodingRepl
from finetune.predict.records import reply_record
from finetune.predict.seq2seq import Seq2SeqPredictor
from finetune.predict.session import SessionSettings
from finetune.runtime.console import as_json, log, print_result
from finetune.runtime.errors import UserError, shown

GREETING = """
============================================================
🤖 文字轉換：輸入一段文字，模型寫出結果{prefix}
  輸入 help：其他指令
  輸入 quit、exit 或 q：離開
============================================================"""
HELP = """
  一段文字        模型寫出結果；每次重新開始，不保留先前的內容
{decoding}
  beams N         束搜尋的寬度，1 到 16；1 不用（現在 {beams}）{others}
  quit            離開（也可按 Ctrl-D；Ctrl-C 取消這一行，或中止正在寫的結果）
"""
MOST_BEAMS = 16


class Seq2SeqRepl(DecodingRepl[Seq2SeqPredictor]):
    """Session with an encoder-decoder; of the settings it uses `decoding`."""

    input_prompt = "💬 請輸入文字: "

    def __init__(self, predictor: Seq2SeqPredictor, settings: SessionSettings):
        predictor.with_system("", settings.system_prompt)
        given = settings.decoding.max_new_tokens != Decoding().max_new_tokens
        super().__init__(predictor, None, predictor.trained_length(settings.decoding, given))
        prefix = f"（前面自動加上 {shown(predictor.prefix)}）" if predictor.prefix else ""
        self.greeting = GREETING.format(prefix=prefix)
        self.commands["beams"] = self._beams

    def help(self) -> str:
        """Return the list of commands with the current settings."""
        beams = self.decoding.num_beams
        return HELP.format(decoding=self.decoding_help(), beams=beams, others=self.other_flags())

    def respond(self, entry: str) -> None:
        """Print the output for an entry as it is written.

        Raises:
            UserError: what is wrong with the entry.
        """
        self.predictor.truncation_logged = False  # in a session every long entry is warned of
        ids = self.predictor.encode(entry)
        self.predictor.warn(entry)
        self.print_reply(ids)

    def _beams(self, value: str) -> None:
        if not (value.isdecimal() and 1 <= int(value) <= MOST_BEAMS):
            raise UserError(f"beams {value[:20]}：應為 1 到 {MOST_BEAMS} 的整數，例如 beams 4")
        self.decoding = replace(self.decoding, num_beams=int(value), do_sample=False)
        print_result(f"  束寬 {value}" + ("（不用束搜尋）" if int(value) == 1 else ""))

    def _ask_question(self) -> None:
        raise UserError("這是文字轉換模型，不會答選擇題；請直接輸入要轉換的文字")


def show_output(flags: InferenceArgs, predictor: Seq2SeqPredictor) -> None:
    """Print the output for --prompt as it is written, and whether it was cut short."""
    decoding, text = predictor.decoding_of(flags), required(flags.prompt)
    ids = predictor.encode(text)
    predictor.warn(text)
    if flags.json:
        reply = predictor.generate([ids], decoding)[0]
        print_result(as_json(reply_record(text, reply)))
        return
    print_result(f"輸入: {text}\n\n輸出: ", end="")
    stream = predictor.stream(ids, decoding)
    for piece in stream:
        print_result(piece, end="")
    print_result()
    if stream.truncated:
        log(predictor.truncation_note(ids, decoding, "--max_new_tokens", "要更長就加大它"))
