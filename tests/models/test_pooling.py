"""Pooling as sentence-transformers saves it: read without it, and refused where it is not known."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from finetune.models.pooling import MODES, Normalize, Pooling, pool, read_pooling
from finetune.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path, model_dir):
    """A model with mean pooling, as early versions of sentence-transformers wrote it."""
    shutil.copytree(model_dir, tmp_path / "m")
    write(tmp_path / "m", "modules.json", modules("Pooling"))
    write(tmp_path / "m", "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    return tmp_path / "m"


def write(folder, name, value):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def modules(*kinds, prefix="sentence_transformers.models."):
    parts = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for at, kind in enumerate(kinds, 1):
        parts.append({"idx": at, "name": str(at), "path": f"{at}_{kind}", "type": prefix + kind})
    return parts


def write_dense(folder, path, weight, offset=None, **config):
    from safetensors.torch import save_file

    (folder / path).mkdir(exist_ok=True)
    tensors = {"linear.weight": weight} | ({} if offset is None else {"linear.bias": offset})
    save_file(tensors, folder / path / "model.safetensors")
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": offset is not None}
    write(folder, f"{path}/config.json", {**sizes, **config})


@pytest.mark.parametrize("skipped", [0, 2])
def test_every_mode_equals_a_plain_loop_over_the_texts(skipped):
    torch.manual_seed(0)
    parts = [torch.randn(length, 5) for length in (3, 1, 6)]
    found = pool(torch.cat(parts), torch.tensor([3, 1, 6]), MODES, skipped)
    for row, part in zip(found, parts, strict=True):
        kept = part[skipped:]
        if not len(kept):  # a text that is all prompt: nothing to pool, and no division by zero
            assert row[10:15].abs().max() == 0
            continue
        weights = torch.arange(1, len(part) + 1)[skipped:, None].float()
        wanted = {
            "cls": kept[0], "max": kept.max(0).values, "mean": kept.mean(0),
            "mean_sqrt_len_tokens": kept.sum(0) / len(kept) ** 0.5,
            "weightedmean": (kept * weights).sum(0) / weights.sum(), "lasttoken": part[-1],
        }  # fmt: skip
        torch.testing.assert_close(row, torch.cat([wanted[mode] for mode in MODES]))


def test_a_model_that_brings_nothing_is_pooled_by_the_mean(model_dir):
    assert read_pooling(str(model_dir), "--model_path") == Pooling()
    assert Pooling().name == "mean" and not Pooling().brought


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({}, ("mean",)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 32}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "max"]}, ("mean", "max")),
    ],
)
def test_the_old_and_the_new_layout_say_the_same(folder, config, modes):
    write(folder, "1_Pooling/config.json", config)
    found = read_pooling(str(folder), "--model_path")
    assert found.modes == modes and found.brought and found.include_prompt


def test_all_that_decides_a_vector_is_read(folder):
    write(folder, "modules.json", modules("Pooling", "Dense", "Normalize"))
    write(folder, "1_Pooling/config.json", {"pooling_mode_cls_token": True, "include_prompt": False})
    write_dense(folder, "2_Dense", torch.eye(4), activation_function="torch.nn.modules.linear.Identity")
    write(folder, "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    settings = {"prompts": {"q": "問："}, "default_prompt_name": "q", "truncate_dim": 3}
    write(folder, "config_sentence_transformers.json", settings)
    found = read_pooling(str(folder), "--model_path")
    assert (found.max_length, found.lower_case, found.prompt, found.dimension) == (20, True, "問：", 3)
    assert found.name == "cls+dense+normalize" and not found.include_prompt
    vectors = torch.tensor([[3.0, 0.0, 4.0, 0.0]])
    torch.testing.assert_close(found.finish(vectors), torch.tensor([[0.6, 0.0, 0.8]]))
    other = read_pooling(str(folder), "--model_path").with_modes("mean")
    assert other.name == "mean" and other.prompt == "問：" and other.max_length == 20


REFUSED = {
    "module": ("modules.json", modules("LSTM"), "LSTM"),
    "foreign": ("modules.json", modules("Pooling", prefix="my_package."), "my_package.Pooling"),
    "order": ("modules.json", modules("Normalize", "Pooling"), "Normalize → Pooling"),
    "list": ("modules.json", {"a": 1}, "清單"),
    "many": ("modules.json", modules(*["Normalize"] * 20), "16"),
    "entry": ("modules.json", [*modules(), 3], "3"),
    "path": ("modules.json", [*modules(), modules("Pooling")[1] | {"path": "../x"}], "資料夾外面"),
    "elsewhere": ("modules.json", [modules()[0] | {"path": "0_T"}, *modules("Pooling")[1:]], "0_T"),
    "json": ("modules.json", "[{", "讀不懂"),
    "mode": ("1_Pooling/config.json", {"pooling_mode": "median"}, "median"),
    "no mode": ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode"),
    "old mode": ("1_Pooling/config.json", {"pooling_mode_median_tokens": True}, "pooling_mode_median_tokens"),
    "prompt": ("1_Pooling/config.json", {"include_prompt": 3}, "include_prompt"),
    "length": ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length"),
    "case": ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case"),
    "chat": ("sentence_bert_config.json", {"modality_config": {"message": {"method": "forward"}}}, "message"),
    "task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
    "default": ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name"),
    "cut": ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim"),
    "object": ("config_sentence_transformers.json", [1], "物件"),
    "huge": ("sentence_bert_config.json", {"max_seq_length": 10**12}, "上限"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_known_is_refused_by_its_name(folder, what):
    file, value, named = REFUSED[what]
    write(folder, file, value)
    with pytest.raises(UserError) as refused:
        read_pooling(str(folder), "--model_path")
    assert named in str(refused.value) and str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"activation_function": "os.system"}, "os.system"),
        ({"activation_function": "torch.nn.modules.rnn.LSTM"}, "LSTM"),
        ({"in_features": 5}, "形狀"),
        ({"out_features": "x"}, "out_features"),
        ({"bias": True}, "形狀"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
    ],
)
def test_a_linear_layer_that_does_not_fit_is_refused(folder, config, named):
    write(folder, "modules.json", modules("Pooling", "Dense"))
    write_dense(folder, "2_Dense", torch.eye(4), **config)
    with pytest.raises(UserError, match=named):
        read_pooling(str(folder), "--model_path")


def test_weights_in_a_pickle_links_out_and_giant_files_are_not_read(folder, tmp_path):
    write(folder, "modules.json", modules("Pooling", "Dense"))
    write_dense(folder, "2_Dense", torch.eye(4))
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        read_pooling(str(folder), "--model_path")
    write(folder, "modules.json", modules("Pooling"))
    (tmp_path / "outside.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling" / "config.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(UserError, match="連到資料夾外面"):
        read_pooling(str(folder), "--model_path")
    with (folder / "modules.json").open("r+b") as stream:
        stream.truncate(17 << 20)
    with pytest.raises(UserError, match="上限"):
        read_pooling(str(folder), "--model_path")


def test_a_step_that_takes_vectors_of_another_length_says_so(folder):
    write(folder, "modules.json", modules("Pooling", "Dense"))
    write_dense(folder, "2_Dense", torch.eye(4))
    with pytest.raises(UserError, match="4 維"):
        read_pooling(str(folder), "--model_path").finish(torch.ones(1, 32))


def test_the_weights_of_a_step_are_part_of_what_vectors_are(folder):
    write(folder, "modules.json", modules("Pooling", "Dense"))
    settings = []
    for scale in (1, 2):
        write_dense(folder, "2_Dense", torch.eye(4) * scale, torch.zeros(4))
        settings.append(read_pooling(str(folder), "--model_path").settings())
    assert settings[0] != settings[1]
    np.testing.assert_allclose(Normalize()(torch.ones(1, 4)).numpy(), [[0.5] * 4])
