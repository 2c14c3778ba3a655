"""Interactive session with a tagger, and how the spans of a text are printed."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.tag_schemes import UNTYPED
from finetune.evaluation.tag_records import Entity
from finetune.predict.records import entities_record
from finetune.predict.repl import Repl
from finetune.predict.session import SessionSettings
from finetune.predict.tagger import TaggerPredictor
from finetune.runtime.console import as_json, plain, print_result, shows_colour
from finetune.runtime.errors import UserError
from finetune.runtime.text_width import align_table

LISTED = 8  # labels in the greeting
GREETING = """
============================================================
🤖 序列標註：{labels}
  輸入一段文字：標出裡面的{what}
  輸入 help：其他指令
  輸入 quit、exit 或 q：離開
============================================================"""
HELP = """
  一段文字      標註；多長都可以，太長的分段來讀
  labels        列出全部 {count} 種標籤
  quit          離開（也可按 Ctrl-D；Ctrl-C 只取消這一行）
"""
NOTHING = "  （沒有標到什麼）"
COLOURS = (32, 36, 33, 35, 34, 31, 92, 96, 93, 95, 94, 91)  # of labels, in turn: foreground, SGR


class TaggerRepl(Repl[TaggerPredictor]):
    """Session with a tagger."""

    input_prompt = "💬 請輸入文字: "

    def __init__(self, predictor: TaggerPredictor, settings: SessionSettings):
        super().__init__(predictor, None, settings.top_k)
        names = [label for label in predictor.tags.labels if label != UNTYPED]
        labels = plain("、".join(names[:LISTED]), lines=False) or "分段"
        labels += f" 等 {len(names)} 種" if len(names) > LISTED else ""
        self.greeting = GREETING.format(labels=labels, what="標記" if names else "詞")
        self.commands = {"labels": self._labels}

    def help(self) -> str:
        """Return the list of commands."""
        return HELP.format(count=len(self.predictor.tags.labels))

    def respond(self, entry: str) -> None:
        """Print the spans of an entry."""
        entities = self.predictor.tag([entry])[0]
        self.predictor.warn(entry)
        print_result("\n🔮 ", end="")
        print_entities(self.predictor, entry, entities)
        print_result()

    def _labels(self, value: str) -> None:
        """List the labels."""
        if value:
            raise UserError("labels 後面不用寫什麼")
        names = [_label(label) or "（不分類型）" for label in self.predictor.tags.labels]
        print_result(plain("  " + "、".join(names), lines=False))

    def _ask_question(self) -> None:
        raise UserError("這是序列標註模型，不會答選擇題；請直接輸入要標註的文字")


def show_entities(flags: InferenceArgs, predictor: TaggerPredictor) -> None:
    """Print the spans of --prompt."""
    text = required(flags.prompt)
    if flags.json:
        print_result(as_json(entities_record(predictor, text)))
        predictor.warn(text)
        return
    entities = predictor.tag([text])[0]
    predictor.warn(text)
    print_result("標註: ", end="")
    print_entities(predictor, text, entities)


def print_entities(predictor: TaggerPredictor, text: str, entities: Sequence[Entity]) -> None:
    """Print a text with its spans marked, and a list of them below."""
    print_marked(text, entities, predictor.tags.labels)
    if not entities:
        print_result(NOTHING)
        return
    print_result()
    rows = [
        [
            f"{number}.", plain(entity["text"], lines=False), plain(_label(entity["label"]), lines=False),
            f"{entity['start']}–{entity['end']}", f"(機率: {entity['score']:.4f})",
        ]
        for number, entity in enumerate(entities, 1)
    ]  # fmt: skip
    for cells in align_table(rows):
        print_result(f"  {'  '.join(cell for cell in cells if cell.strip())}".rstrip())


def print_marked(text: str, entities: Sequence[Entity], labels: Sequence[str]) -> None:
    """Print a text with its spans in colour on a terminal, else as 【王小明｜PER】.

    Colours are off where NO_COLOR is set (no-color.org).
    """
    coloured, done = shows_colour(), 0
    for entity in entities:
        print_result(text[done : entity["start"]], end="")
        label = _label(entity["label"])
        if coloured:
            colour = COLOURS[labels.index(entity["label"]) % len(COLOURS)]
            print_result(entity["text"], end="", style=f"1;{colour}")
            print_result(f"/{label}" if label else " ", end="", style="2")
        else:
            print_result(f"【{entity['text']}{'｜' if label else ''}{label}】", end="")
        done = entity["end"]
    print_result(text[done:])


def _label(label: str) -> str:
    """Return a label for the screen; "" for spans that have no type."""
    return "" if label == UNTYPED else label
