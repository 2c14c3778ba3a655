"""Keys that may be wrong, in words and tables; the rows are those of evaluation/key_audit.py."""

from __future__ import annotations

from typing import Any

from finetune.data.subjects import subject_title
from finetune.reports.number_format import percent

FILE = "doubtful_keys.jsonl"
TITLE = "答案可能有誤的題目"
COLUMNS = (
    "名次",
    "編號",
    "科目",
    "題庫的答案",
    "多數選",
    "票數",
    "機率：多數選的",
    "機率：題庫的答案",
    "題目",
)
ON_SCREEN = 5  # doubtful keys that the screen lists
STEM = 40  # characters of a stem on the screen and in a table
TO_BE_CHECKED = "這些題目要由人查證，不能直接改答案：模型有把握地答錯，看起來也是這個樣子。"


def sentences(metrics: dict[str, Any]) -> list[str]:
    """Return what an audit of the keys of one set of questions found, a sentence each."""
    audit = metrics["doubtful_keys"]
    counted = [voter for voter in audit["voters"] if voter["weight"]]
    idle = [voter["name"] for voter in audit["voters"] if not voter["weight"]]
    lines = [f"{'、'.join(idle)} 的成績看不出比亂猜好，它的票不計。"] if idle else []
    if not counted:
        return [*lines, "沒有可信的票，無從找出答案可能有誤的題目。"]
    who = "、".join(f"{voter['name']} 每題 {voter['votes']} 票" for voter in counted)
    if sum(voter["votes"] for voter in counted) < 2:
        return [
            *lines,
            f"{who}，看不出意見是否一致：列出的只是這個模型答錯的 {audit['listed']} 題，最有把握的在前。",
            *_ending(audit),
        ]
    if not audit["listed"]:
        return [*lines, f"{who}：沒有一題有半數以上的票選了題庫的答案以外的同一個選項。"]
    lines += [
        f"{who}：{audit['questions']} 題中有 {audit['listed']} 題，半數以上的票選同一個選項，"
        f"而且不是題庫的答案；其中 {audit['unanimous']} 題每一票都一樣。"
        "依校準後兩者機率的差距，從最可疑的排起。",
        f"假如題庫的答案都對，每一票碰巧都選同一個錯的選項的題目，{accidents(audit)}。"
        "同一個模型換順序的票常一起錯，不同的模型也可能有一樣的誤解，實際會比獨立時多。",
    ]
    return [*lines, *_ending(audit)]


def _ending(audit: dict[str, Any]) -> list[str]:
    """Return where the rest of the list is, and what is to be done with it."""
    shown = len(audit["top"])
    rest = [f"這裡列出前 {shown} 題，全部在 {FILE}。"] if shown < audit["listed"] else []
    return [*rest, *([TO_BE_CHECKED] if audit["listed"] else [])]


def rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of COLUMNS for each doubtful key that the report lists."""
    return [
        (
            str(row["rank"]), row["id"], subject_title(row["subject"]), row["key"], row["alternative"],
            _count(row), percent(row["probability_of_alternative"]), percent(row["probability_of_key"]),
            _stem(row),
        )
        for row in metrics["doubtful_keys"]["top"]
    ]  # fmt: skip


def votes_of(row: dict[str, Any]) -> str:
    """Return how the votes on one question fell, and the probabilities they rest on."""
    return (
        f"{_count(row)} 票選 {row['alternative']}（機率 {percent(row['probability_of_alternative'])}），"
        f"題庫的答案 {row['key']} 的機率 {percent(row['probability_of_key'])}"
    )


def screen_lines(metrics: dict[str, Any]) -> list[str]:
    """Return what the screen shows of an audit; nothing without one."""
    if "doubtful_keys" not in metrics:
        return []
    audit = metrics["doubtful_keys"]
    if not audit["listed"]:
        return [f"  {TITLE}：{''.join(sentences(metrics))}"]
    votes = sum(voter["votes"] for voter in audit["voters"] if voter["weight"])
    agreed = f"{audit['unanimous']} 題每一票都一樣" if votes > 1 else "只有一票，看不出意見是否一致"
    lines = [
        f"  {TITLE}：{audit['listed']} 題（{agreed}），要由人查證；全部在 {FILE}",
        f"    假如題庫的答案都對，每一票碰巧都一樣的題目，{accidents(audit)}",
    ]
    for row in audit["top"][:ON_SCREEN]:
        lines.append(f"    {row['rank']}. {row['id']} {_stem(row)} {votes_of(row)}")
    return lines


def accidents(audit: dict[str, Any]) -> str:
    """Return on how many questions all votes would agree if all keys were right, by the two bounds."""
    least, most = audit["by_accident"]["votes_independent"], audit["by_accident"]["models_independent"]
    one_by_one = f"各票獨立出錯時有{expected(least)}"
    if abs(most - least) < 0.05:  # a vote a model
        return one_by_one
    return f"{one_by_one}，同一個模型的票都一起錯時有{expected(most)}"


def expected(count: float) -> str:
    """Write an expected number of questions: of a small one that it is small."""
    return "不到 0.1 題" if count < 0.1 else f"大約 {count:.1f} 題"


def _stem(row: dict[str, Any]) -> str:
    """Return the stem of a question on one line, cut where it is long."""
    stem = " ".join(row["question"].split())
    return stem if len(stem) <= STEM else f"{stem[:STEM]}…"


def _count(row: dict[str, Any]) -> str:
    """Return how many of the votes name the alternative, as 4/4."""
    votes = [vote for of_voter in row["votes"].values() for vote in of_voter]
    return f"{votes.count(row['alternative'])}/{len(votes)}"
