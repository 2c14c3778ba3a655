"""Kinds of models by their configuration, and new heads: language models, heads, encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from finetune.models.forward import CAUSAL_CLASSES, MULTI_LABEL, SINGLE_LABEL, is_multi
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES = {  # kind -> its auto class in transformers
    "masked": "AutoModelForMaskedLM", "causal": "AutoModelForCausalLM",
    "classifier": "AutoModelForSequenceClassification", "choice": "AutoModelForMultipleChoice",
    "tagger": "AutoModelForTokenClassification", "extractor": "AutoModelForQuestionAnswering",
    "seq2seq": "AutoModelForSeq2SeqLM", "encoder": "AutoModel",
}  # fmt: skip
HEAD_ENDINGS = {  # kind -> how the names of its classes in transformers end
    "classifier": "ForSequenceClassification", "choice": "ForMultipleChoice",
    "tagger": "ForTokenClassification", "extractor": "ForQuestionAnswering",
}  # fmt: skip
# kinds whose head is put on here, whatever the base was trained for
NEW_HEAD = ("classifier", "choice", "tagger", "extractor")
WITH_LABELS = ("classifier", "tagger")  # kinds whose outputs have names
TITLES = {
    "masked": "填空用的遮罩語言模型", "causal": "生成文字的因果語言模型", "classifier": "文字分類模型",
    "choice": "選擇題模型", "tagger": "序列標註模型", "extractor": "抽取式問答模型",
    "seq2seq": "編碼器－解碼器模型", "encoder": "沒有輸出層的編碼器",
}  # fmt: skip
# Attribute of a configuration: the kind that this project fine-tuned a model to be, where its class does not
# tell: BART's fills [MASK] and writes summaries.
FINE_TUNED_AS = "fine_tuned_as"
# Attribute of a configuration: an extractor was trained on passages without an answer too, and may give none.
FINDS_NO_ANSWER = "finds_no_answer"
HINTS = {
    "masked": "請換 bert-base-chinese 這類有 MLM 輸出層的模型",
    "causal": "請換 Qwen/Qwen2.5-0.5B 這類模型；遮罩語言模型用 --task exam、mlm 或 classify 訓練",
    "classifier": "請換 bert-base-chinese 這類模型",
    "choice": "請換 bert-base-chinese 這類編碼器；因果語言模型用 --task sft 訓練選擇題",
    "tagger": "請換 bert-base-chinese 這類模型",
    "extractor": "請換 bert-base-chinese 這類模型",
    "seq2seq": "請換 google/mt5-small、fnlp/bart-base-chinese 這類模型",
    "encoder": "請換 bert-base-chinese 這類模型",
}


def kind_of(config: PreTrainedConfig) -> str:
    """Return the kind that a model was saved as: one of CLASSES, or "" for none of them."""
    names = config.architectures or []
    # decided without the import below, which takes longer than a prompt
    if names == ["BertForMaskedLM"] and config.model_type == "bert":
        return "masked"
    for kind, ending in HEAD_ENDINGS.items():
        if any(name.endswith(ending) for name in names):
            return kind
    if any(name.endswith(CAUSAL_CLASSES) for name in names):
        return "causal"
    if names and all(name.endswith("EncoderModel") for name in names):  # T5's encoder by itself
        return "encoder"
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if is_seq2seq(config):
        return "seq2seq"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return "masked"
    return "causal" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else ""


def names_no_head(config: PreTrainedConfig) -> bool:
    """Return whether a configuration names no class with a head: its weights may be those of a body alone.

    They may also have the head of a language model: BART's were saved as BartModel, and fill masks.
    """
    return all(name.endswith("Model") for name in config.architectures or [])


def is_seq2seq(config: PreTrainedConfig) -> bool:
    """Return whether a model is used to write texts from texts: an encoder-decoder such as T5.

    A family that also fills [MASK] (BART, mBART) does so unless it was fine-tuned here to write.
    """
    if not config.is_encoder_decoder:
        return False
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return False
    return type(config) not in MODEL_FOR_MASKED_LM_MAPPING or getattr(config, FINE_TUNED_AS, "") == "seq2seq"


def finds_no_answer(config: PreTrainedConfig) -> bool:
    """Return whether an extractor was trained on passages without an answer, and so may give none."""
    return bool(getattr(config, FINDS_NO_ANSWER, False))


def is_decoder(config: PreTrainedConfig) -> bool:
    """Return whether a family has causal language models and no masked ones."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def _takes_body(config: PreTrainedConfig, wanted: Any) -> bool:
    """Return whether a class with a head finds the weights of its family's body in a file.

    LlamaForQuestionAnswering and its kin look for `transformer.`, and every file of theirs has `model.`.
    """
    from transformers import MODEL_MAPPING

    body: Any = MODEL_MAPPING.get(type(config), wanted)
    body = body[0] if isinstance(body, (list, tuple)) else body
    return bool(body.base_model_prefix == wanted.base_model_prefix)


def mismatch_reason(config: PreTrainedConfig, kind: str, name: str) -> str:
    """Return why a model cannot be of the wanted kind; "" when it can."""
    import transformers

    saved_as, classes = kind_of(config), config.architectures or []
    description = f"是 {config.model_type} 模型（{'、'.join(classes) or '未註明架構'}）"
    if kind in NEW_HEAD and saved_as != kind:
        if saved_as in NEW_HEAD:
            return f"{description}：已經是{TITLES[saved_as]}，不能改成{TITLES[kind]}；請換它的底模"
        known = getattr(transformers, CLASSES[kind])._model_mapping
        if type(config) not in known or not _takes_body(config, known[type(config)]):
            return f"{description}：這類模型不能當{TITLES[kind]}的底模；{HINTS[kind]}"
        return ""
    if kind == "encoder":
        return ""
    if kind == "seq2seq":
        from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

        fits = saved_as not in NEW_HEAD and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        return "" if fits else f"{description}，不是{TITLES[kind]}；{HINTS[kind]}"
    if kind == "masked" and config.model_type == "electra" and "ElectraForMaskedLM" not in classes:
        return (
            f"{description}：ELECTRA 的 discriminator 學的是認出哪些字被換過，沒有填 [MASK] 的輸出層；"
            "可用 --task classify 或 --objective choice，或改用 bert-base-chinese"
        )
    fine_tuned_here = (Path(name).expanduser() / "run_card.json").is_file()  # on masked tokens
    if kind == "masked" and "macbert" in Path(name).name.lower() and not fine_tuned_here:
        return (
            f"{description}：MacBERT 預訓練時以近義詞代替 [MASK]，它的輸出層不會填空（見 MacBERT 的說明）；"
            "可用 --task classify 或 --objective choice，或改用 hfl/chinese-roberta-wwm-ext；"
            "其實不是 MacBERT 的話，請把資料夾改名"
        )
    if kind not in ("", saved_as) or not saved_as:
        wanted = TITLES.get(kind) or "、".join(TITLES.values())
        return f"{description}，不是{wanted}；{HINTS.get(kind) or HINTS['masked']}"
    return ""


def names_of(config: PreTrainedConfig) -> list[str]:
    """Return the labels of a classifier or tagger, by class number."""
    labels = cast(dict[int, str], config.id2label)
    return [str(labels[number]) for number in range(cast(int, config.num_labels))]


def classes_of(config: PreTrainedConfig) -> list[str]:
    """Return the labels of a classifier or tagger, by class number; none of another model."""
    return names_of(config) if kind_of(config) in WITH_LABELS else []


def name_tags(config: PreTrainedConfig, names: Sequence[str]) -> None:
    """Write the tags of a tagger into a configuration.

    Raises:
        UserError: the model is a tagger with other tags already.
    """
    known = classes_of(config)
    if known and known != list(names):
        ours, theirs = ("、".join(part[:10]) + "…" * (len(part) > 10) for part in (known, list(names)))
        raise UserError(
            f"--model_name_or_path：底模已經是{TITLES['tagger']}，標記依序是（{ours}），資料的是（{theirs}）；"
            "資料的標記都在底模的標記之中，才能接著訓練；否則請改用它的底模"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: at for at, name in enumerate(names)}


def name_classes(config: PreTrainedConfig, names: Sequence[str], multi: bool) -> None:
    """Write the labels of a classifier into a configuration.

    Raises:
        UserError: the model is a classifier with other labels already.
    """
    known = classes_of(config)
    if known and (known != list(names) or multi != is_multi(config)):
        present, wanted = (
            f"{'多標籤' if several else '單一標籤'}（{'、'.join(labels[:10])}{'…' * (len(labels) > 10)}）"
            for labels, several in ((known, is_multi(config)), (list(names), multi))
        )
        raise UserError(
            f"--model_name_or_path：底模已經是分類模型，標籤依序是{present}，資料的是{wanted}；"
            "資料的標籤都在底模的標籤之中、單一或多標籤也相同，才能接著訓練；否則請改用它的底模"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: at for at, name in enumerate(names)}
    config.problem_type = MULTI_LABEL if multi else SINGLE_LABEL
