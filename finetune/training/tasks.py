"""Tasks by the value of --task.

exam      questions to a masked model or a multiple-choice head
mlm       texts to a masked model                classify  labelled texts to a classifier
cpt       texts to a causal model                sft       replies to a causal model
tag       texts with marked spans to a tagger    span      questions about passages to an extractor
seq2seq   pairs of texts to an encoder-decoder
"""

from __future__ import annotations

from finetune.data.corpus import Corpus
from finetune.data.exam import Exam
from finetune.data.instructions import InstructionDataset
from finetune.data.labelled import LabelledDataset
from finetune.data.row_dataset import RowDataset
from finetune.training.classification_task import ClassificationTask
from finetune.training.language_tasks import CausalLMTask, ExamTask, InstructionTask, MaskedLMTask
from finetune.training.seq2seq_task import Seq2SeqTask
from finetune.training.span_task import SpanTask
from finetune.training.tag_task import TagTask
from finetune.training.task import Task

# what a task reads its rows from
Source = Exam | Corpus | InstructionDataset | LabelledDataset | RowDataset

TASKS: dict[str, Task] = {
    "exam": ExamTask(), "mlm": MaskedLMTask(), "classify": ClassificationTask(), "cpt": CausalLMTask(),
    "sft": InstructionTask(), "tag": TagTask(), "span": SpanTask(),
    "seq2seq": Seq2SeqTask(),
}  # fmt: skip
