"""Log of what became of the rows."""

from __future__ import annotations

from types import SimpleNamespace

from finetune.data.labelled import Labelled
from finetune.objectives.classification import ClassificationObjective
from finetune.objectives.preview import log_row_lengths


def test_a_text_that_is_cut_is_called_a_text(loaded, capsys):
    rows = [Labelled("天地玄黃" * 20, labels=(0,)), Labelled("天", labels=(1,))]
    log_row_lengths("訓練", ClassificationObjective(loaded[1], rows, 16, 2, False))
    assert "1 列太長，縮短了文字的尾端" in capsys.readouterr().err
    replies = SimpleNamespace(
        rows=rows, name="sft", truncated=1, too_long=[], rejected_by_template=[], remarks={}
    )
    log_row_lengths("訓練", replies)
    assert "縮短了回答的尾端" in capsys.readouterr().err
