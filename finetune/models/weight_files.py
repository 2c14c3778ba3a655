"""Checks on a model's weight files before a library opens them: complete files, weights in a usable format.

transformers adapts weights that it does not understand: integers become floats without their scale, an
unknown quantization is ignored, and the model's output is nonsense.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.runtime import git_lfs, limits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLOATS = {"F64", "F32", "F16", "BF16"}  # floating-point types of safetensors
LONGEST_HEADER = 100_000_000  # bytes; safetensors takes no more
# Ends of the names of tables of positions and masks, which are no weights.
TABLES = ("bias", "mask", "_ids", "_index", "_idx", "inv_freq", "num_batches_tracked")
# Libraries that compute on a GPU with weights that are no plain floats, by `quant_method`.
QUANTIZED = {
    "gptq": "gptqmodel", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes", "hqq": "hqq", "aqlm": "aqlm",
    "compressed-tensors": "compressed_tensors", "torchao": "torchao", "quanto": "optimum.quanto",
    "fp8": "", "mxfp4": "triton", "fbgemm_fp8": "fbgemm_gpu",
}  # fmt: skip


def problems(folder: Path, weights: Sequence[str]) -> list[str]:
    """Return what is wrong with a model's files.

    Args:
        folder: the model.
        weights: names of the weight file or of its index; the first that exists is checked.
    """
    messages = [
        git_lfs.pointer_problem(file) for file in sorted(folder.iterdir()) if git_lfs.is_pointer(file)
    ]
    if messages:
        return messages
    main = next((folder / name for name in weights if (folder / name).is_file()), None)
    files = [main] if main is not None else []
    if main is not None and main.name.endswith(".json"):
        listed = limits.read(main).get("weight_map") or {}
        files = [folder / name for name in sorted(set(listed.values()))]
        if lost := [file.name for file in files if not file.is_file()]:
            named = "、".join(lost[:10]) + "…" * (len(lost) > 10)
            counted = f"{main.name} 列了 {len(files)} 個，少 {len(lost)} 個"
            return [f"少了權重檔 {named}（{counted}）；請重新下載"]
        messages = [git_lfs.pointer_problem(file) for file in files if git_lfs.is_pointer(file)]
    if messages:
        return messages
    return [text for file in files if file.suffix == ".safetensors" for text in _header_problems(file)][:10]


def _header_problems(file: Path) -> Iterator[str]:
    """Yield what is wrong with a safetensors file, by its header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > LONGEST_HEADER or 8 + length > size:
            sizes = f"有 {size:,} 個位元組，檔頭記載的目錄卻有 {length:,} 個"
            yield f"{file.name} 不完整，或不是 safetensors：{sizes}；請重新下載"
            return
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
            formats = {name: (str(entry["dtype"]), len(entry["shape"])) for name, entry in tensors.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            yield f"{file.name} 的目錄讀不懂，不是 safetensors 或已損壞；請重新下載"
            return
    if size != end:
        yield f"{file.name} 有 {size:,} 個位元組，應有 {end:,} 個：沒有下載完，或寫到一半磁碟滿了；請重新下載"
    not_floats = [
        name
        for name, (dtype, dims) in sorted(formats.items())
        if dtype not in FLOATS and dims > 1 and not name.endswith(TABLES)
    ]
    if not_floats:
        dtype = formats[not_floats[0]][0]
        yield (
            f"{file.name} 的權重不是浮點數：{not_floats[0]} 是 {dtype}（共 {len(not_floats)} 個張量）；"
            "這是量化或壓縮過的權重，請換未量化的原版模型"
        )


def quantization(config: PreTrainedConfig, training: bool) -> str:
    """Return why the quantized weights of a model cannot be used; "" where they can, or are not quantized.

    Args:
        config: the model's configuration.
        training: the model is to be trained.
    """
    settings = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not settings:
        return ""
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(settings.get("quant_method") or "")
    if not method and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
        method = "bitsandbytes"
    named = f"config.json 說權重是量化過的（quantization_config 的 quant_method 是 {method[:40]!r}）"
    hint = "請換未量化的原版模型，或刪去其實沒有用到的 quantization_config"
    if method not in QUANTIZED:
        return f"{named}，這裡不認得；{hint}"
    if training:
        return f"{named}，不能訓練；請換未量化的原版模型，要省記憶體可加 --lora_rank 16 --load_in_4bit"
    import torch

    if not torch.cuda.is_available():
        return f"{named}，要有 GPU 才能算，這台機器沒有；{hint}"
    library = QUANTIZED[method]
    if library and importlib.util.find_spec(library.partition(".")[0]) is None:
        return f"{named}，要有 {library} 才能算，這裡沒有安裝；請 pip install {library}，或{hint[1:]}"
    return ""
