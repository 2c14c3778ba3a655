"""Interactive session with a classifier, and how ranked labels are printed."""

from __future__ import annotations

from finetune.cli.inference_args import InferenceArgs, required
from finetune.evaluation.classification import THRESHOLD
from finetune.predict.classifier import ClassifierPredictor, Ranked
from finetune.predict.records import labels_record
from finetune.predict.repl import Repl
from finetune.predict.session import SessionSettings
from finetune.runtime.console import as_json, plain, print_result
from finetune.runtime.errors import UserError

BETWEEN = "|||"  # the two sentences of a pair
LISTED = 8  # labels in the greeting
GREETING = """
============================================================
🤖 {what}：{labels}
  輸入一段文字：看它{task}
  輸入 help：其他指令
  輸入 quit、exit 或 q：離開
============================================================"""
HELP = """
  一段文字      分類，機率高的在前{several}
  甲 ||| 乙     一對句子，例如問句與答句
  top N         列出前 N 名（現在 {top_k}，標籤共 {count} 個）
  quit          離開（也可按 Ctrl-D；Ctrl-C 只取消這一行）
"""


class ClassifierRepl(Repl[ClassifierPredictor]):
    """Session with a classifier; of the settings it uses `top_k`, the labels that are listed."""

    input_prompt = "💬 請輸入文字: "

    def __init__(self, predictor: ClassifierPredictor, settings: SessionSettings):
        super().__init__(predictor, None, settings.top_k)
        names = predictor.names
        labels = plain("、".join(names[:LISTED]), lines=False)
        labels += f" 等 {len(names)} 個標籤" if len(names) > LISTED else ""
        what, task = ("多標籤分類", "有哪些標籤") if predictor.multi else ("文字分類", "最像哪一類")
        self.greeting = GREETING.format(what=what, labels=labels, task=task)
        self.commands = {"top": self._top}

    def help(self) -> str:
        """Return the list of commands with the current settings."""
        several = f"；✓ 是機率 {THRESHOLD} 以上的標籤" if self.predictor.multi else ""
        return HELP.format(top_k=self.top_k, count=len(self.predictor.names), several=several)

    def respond(self, entry: str) -> None:
        """Print the labels of an entry, a text or a pair of them.

        Raises:
            UserError: what is wrong with it.
        """
        texts = [text.strip() for text in entry.split(BETWEEN)]
        if len(texts) > 2 or not all(texts):
            raise UserError(f"一對句子寫成 甲 {BETWEEN} 乙：{BETWEEN} 只有一個，兩邊都要有字")
        self.predictor.truncation_logged = False  # in a session every long entry is warned of
        ranked = self.predictor.classify([(texts[0], texts[1]) if len(texts) > 1 else texts[0]])[0]
        self.predictor.warn(*texts)
        print_result("\n🔮 ", end="")
        print_labels(self.predictor, ranked, self.top_k)
        print_result()

    def _ask_question(self) -> None:
        raise UserError("這是分類模型，不會答選擇題；請直接輸入要分類的文字")


def show_labels(flags: InferenceArgs, predictor: ClassifierPredictor) -> None:
    """Print the labels of --prompt, of a pair with --pair."""
    text, pair = required(flags.prompt), flags.pair
    texts = [text] if pair is None else [text, pair]
    if flags.json:
        top_k = flags.top_k if "top_k" in flags.given else None
        print_result(as_json(labels_record(predictor, text, pair, top_k)))
        predictor.warn(*texts)
        return
    ranked = predictor.classify([text if pair is None else (text, pair)])[0]
    predictor.warn(*texts)
    print_result(f"文字: {flags.prompt}" + ("" if flags.pair is None else f"\n第二句: {flags.pair}") + "\n")
    print_labels(predictor, ranked, flags.top_k)


def print_labels(predictor: ClassifierPredictor, ranked: Ranked, top_k: int) -> None:
    """Print the best `top_k` labels; of a multi-label model also all those of at least THRESHOLD."""
    print_result(f"分類（Top {len(ranked[:top_k])}）:")
    for place, (label, probability) in enumerate(ranked[:top_k], 1):
        mark = " ✓" if predictor.multi and probability >= THRESHOLD else ""
        print_result(f"  {place}. {plain(label, lines=False)} (機率: {probability:.4f}){mark}")
    if predictor.multi:
        chosen = plain("、".join(predictor.chosen_labels(ranked)), lines=False)
        print_result(f"  ✓ 機率 {THRESHOLD} 以上的標籤：{chosen or '一個也沒有'}")
