"""Generated replies to questions, of which it is known what they say. Knows nothing of how they are read."""

import random
import re
from dataclasses import dataclass

from finetune.data.question import LETTERS

WORDS = (
    "這題考的是基本概念",
    "首先看題目的條件",
    "接著比較各個選項",
    "由此可以推論",
    "再檢查一次計算",
    "這與課本所述相符",
)
ENGLISH = (
    "Let me think about this",
    "First consider the conditions",
    "We compare the choices",
    "That matches",
)
TEXTS = (
    "臺北",
    "高雄",
    "牛頓第二定律",
    "光合作用",
    "Newton",
    "3.14",
    "民國三十八年",
    "供給增加",
    "H2O",
    "細胞膜",
    "Atlantis",
    "先秦諸子",
    "無法判定",
    "一半",
    "兩倍",
)


@dataclass
class Made:
    """A reply; `says`: the option that it names in full, `outcome`: cut where its end is missing."""

    options: tuple[str, ...]
    key: int
    text: str
    outcome: str
    says: int | None = None
    truncated: bool = False
    thinking: bool = False


class Maker:
    """Writes replies of which it knows what they say; knows nothing of how they are read."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def prose(self, low=1, high=5) -> str:
        pool = self.rng.choice((WORDS, ENGLISH))
        return "。".join(self.rng.choice(pool) for _ in range(self.rng.randint(low, high))) + "。"

    def thought(self, options) -> str:
        """Thoughts that name options, the wrong ones too."""
        other = LETTERS[self.rng.randrange(len(options))]
        lines = [
            f"答案是 {other} 吧？",
            f"\\boxed{{{other}}}",
            f"也許選 {other}",
            f"**{other}**",
            self.prose(),
        ]
        return "\n".join(self.rng.sample(lines, 3))

    def bare(self, letter, text) -> str:
        return self.rng.choice(
            [
                letter,
                f"({letter})",
                f"（{letter}）",
                f"{letter}. {text}",
                f"{letter}：{text}",
                f"**{letter}**",
                f"**({letter}) {text}**",
                f"{letter})",
                f"【{letter}】",
                chr(ord(letter) + 0xFEE0),
                text,
                f"`{letter}`",
            ]
        )

    def sentence(self, letter, text) -> str:
        return self.rng.choice(
            [
                f"答案是 {letter}。",
                f"答案為({letter})。",
                f"正確答案：{letter}",
                f"正確答案是 **{letter}. {text}**",
                f"故選（{letter}）。",
                f"應選 {letter}。",
                f"我選 {letter}。",
                f"因此選 {letter}。",
                f"The answer is {letter}.",
                f"Answer: {letter}",
                f"The correct answer is ({letter}).",
                f"**答案：{letter}**",
                f"答案是{text}。",
                f"答案：{text}",
                f"ANSWER: **{letter}**",
                f"所以正確選項是 {letter}。",
                f"答案應該是選項 {letter}。",
                f"本題答案選 {letter}。",
            ]
        )

    def final(self, letter, text) -> str:
        return self.rng.choice(
            [
                rf"\boxed{{{letter}}}",
                rf"$\boxed{{\text{{{letter}}}}}$",
                rf"\box{{{letter}}}",
                rf"\boxed{{({letter})}}",
                f"最終答案：{letter}。",
                rf"\boxed{{{letter}. {text}}}",
                rf"\\boxed{{{letter}}}",
                f"最後答案是 {letter}。",
                f"Final answer: {letter}.",
                rf"因此答案是 $\boxed{{{letter}}}$。",
                f"**最終答案：{letter}**",
                rf"\boxed{{{text}}}",
            ]
        )

    def answer(self, options, chosen) -> str:
        """Return a reply that chooses an option; some name others on the way."""
        letter, text = LETTERS[chosen], options[chosen]
        other = LETTERS[(chosen + 1) % len(options)]
        kind = self.rng.randrange(8)
        if kind == 0:
            return self.bare(letter, text)
        if kind == 1:
            return self.sentence(letter, text) + self.rng.choice(["", "\n" + self.prose()])
        if kind == 2:
            return self.prose() + "\n" + self.sentence(letter, text)
        if kind == 3:
            return self.prose() + "\n\n" + self.final(letter, text)
        if kind == 4:
            doubt = self.rng.choice(
                [
                    f"乍看之下答案是 {other}。",
                    f"如果選 {other}，就矛盾了。",
                    f"答案是 {other} 嗎？",
                    f"答案不是 {other}。",
                    f"{other} 是錯的。",
                ]
            )
            return self.prose() + doubt + self.prose() + "\n" + self.final(letter, text)
        if kind == 5:
            listing = "\n".join(
                f"{LETTERS[i]}. {option}：{self.prose(1, 2)}" for i, option in enumerate(options)
            )
            return "逐一分析：\n" + listing + "\n" + self.final(letter, text)
        if kind == 6:
            return f"{letter}. {text}\n\n解析：{self.prose()}"
        return self.prose() + f"\n\n**{letter}**"

    def reply(self) -> Made:
        """Return a reply to a question of its own."""
        rng = self.rng
        options = tuple(rng.sample(TEXTS, rng.choice((2, 4, 4, 4, 5, 10))))
        key, chosen, kind = rng.randrange(len(options)), rng.randrange(len(options)), rng.random()
        if kind < 0.1:
            name = rng.choice(("對不起", "抱歉", "很遺憾"))
            verb = rng.choice(("回答這個問題", "判斷", "提供答案"))
            said = rng.choice(
                [
                    f"{name}，我無法{verb}。",
                    f"{name}，資訊不足，我不能{verb}。",
                    "I'm sorry, I can't answer that.",
                ]
            )
            return Made(options, key, said, "refused")
        if kind < 0.2:
            said = rng.choice(
                [
                    "你好！有什麼可以幫你的嗎？",
                    self.prose(),
                    "這題很有趣，考的是觀念。",
                    "Great question!",
                    "<think>" + self.prose(),
                ]
            )
            return Made(options, key, said, "unreadable")
        if kind < 0.3:
            a, b = rng.sample(range(len(options)), 2)
            first, second = (self.final, self.final) if rng.random() < 0.5 else (self.sentence, self.sentence)
            said = first(LETTERS[a], options[a]) + "\n" + self.prose() + "\n" + second(LETTERS[b], options[b])
            return Made(options, key, said, "unreadable")
        said, thinking = self.answer(options, chosen), False
        if rng.random() < 0.4:
            tag, thinking = rng.choice(("think", "reason", "reasoning", "thought")), rng.random() < 0.3
            said = f"{'' if thinking else f'<{tag}>'}{self.thought(options)}</{tag}>\n{said}"
        if rng.random() < 0.35:
            parts = re.findall(r"[A-Za-z]+|<[^>]*>|.", said, re.DOTALL)  # a tokenizer keeps a word whole
            cut = "".join(parts[: rng.randint(2, max(2, len(parts) - 1))])
            if cut != said:
                return Made(options, key, cut, "cut", chosen, truncated=True, thinking=thinking)
        return Made(options, key, said, "answered", chosen, thinking=thinking)
