"""The Markdown that templates write: to the line, and that no text from outside becomes Markdown."""

from __future__ import annotations

from finetune.models.run_card import RunCard
from finetune.reports import model_card, report
from finetune.reports.templates import code, code_block, escaped, table

MEASURED = {"loss": 1.0, "perplexity": 2.718, "tokens": 1234, "bits_per_character": 1.5}
GROWTH = {
    "sets": {"validation": {"untuned": MEASURED | {"perplexity": 5.436}, "tuned": MEASURED}},
    "samples": [{"prompt": "# 天", "wanted": "地\n```", "untuned": "", "tuned": "{{ 7 * 7 }} <b>"}],
}
TABLE = """\
| 未參與訓練的資料 | token | 困惑度（前） | 困惑度（後） | 變化 | 每字位元（後） |
|---|--:|--:|--:|--:|--:|
| 驗證 | 1,234 | 5.436 | 2.718 | 降低 50.0 % | 1.500 |
"""


def test_the_report_of_a_language_model_is_so_to_the_line():
    assert report.markdown(report.Report({"底模": "a|b"}, {}, {}, growth=GROWTH), {}) == (
        f"""\
# 訓練報告

訓練曲線等等，見 [index.html](index.html)。

- 底模：a&#124;b

## 困惑度

每個 token 的平均負對數概似取指數：模型在每一步平均猶豫於幾個 token 之間。越低越好。

{TABLE}
## 寫出來的文字（greedy）

### 例 1

**提示**

    # 天

**原文**

    地
    ```

**微調前**

    （空白）

**微調後**

    {{{{ 7 * 7 }}}} <b>

"""
    )


def test_its_model_card_is_so_to_the_line():
    card = RunCard(
        task="sft", chat="chatml", base_model="某處/a`b", dataset="對話", step=8, flags={"seed": 7},
        growth=GROWTH,
    )  # fmt: skip
    assert model_card.model_card(card) == (
        f"""\
---
language: zh
library_name: transformers
pipeline_tag: text-generation
tags: [traditional-chinese]
---

# a&#96;b 指令微調模型

- 底模：`某處/a'b`
- 資料：對話
- 來歷：
- 訊息寫法：`chatml`；訓練 8 步：`--task sft --seed 7`

## 困惑度

{TABLE}
## 使用

```bash
python inference.py --model_path 這個資料夾 --prompt "請介紹臺灣"
```
"""
    )


def test_a_text_from_outside_stays_what_it_is():
    assert escaped(" a\n|b_c _d_ <i>") == "a &#124;b_c &#95;d&#95; &lt;i&gt;"
    assert code("`a`\nb") == "`'a' b`"
    assert code_block("# 天\n\n地\n") == "    # 天\n    \n    地"
    assert table(["", "甲"], [["a|b", "1"]]) == "|  | 甲 |\n|---|--:|\n| a&#124;b | 1 |"
    assert table(["甲"], []) == "| 甲 |\n|---|"
