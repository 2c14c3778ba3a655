"""Checks of the flags of vectors: --embed, --nearest, --pooling, --hidden_states."""

from __future__ import annotations

from pathlib import Path

from finetune.cli.file_checks import is_same_file, source_problems, target_problems
from finetune.cli.inference_args import InferenceArgs
from finetune.cli.job_flags import idle_flags
from finetune.runtime.errors import UserError

VECTOR_SUFFIXES = (".parquet", ".npy")
USED_BY = {  # job -> the flags that it uses
    "--hidden_states": {"hidden_states", "prompt"},
    "--nearest": {"embed", "nearest", "pooling", "top_k", "text_column", "encoding", "batch_size"},
    "--embed": {
        "embed", "output", "pooling", "text_column", "overwrite", "strict", "encoding", "batch_size",
    },
}  # fmt: skip
HINTS = {
    "top_k": "列出最接近的幾列要加 --nearest TEXT", "pooling": "要整段文字的向量請用 --embed",
    "output": "先不加 --nearest 把向量寫到 --output，再以 --embed 向量檔 --nearest 查",
}  # fmt: skip


def check_embed(args: InferenceArgs) -> None:
    """Check the flags of vectors against one another and against the files.

    Raises:
        UserError: with every problem.
    """
    if args.embed is None and not args.hidden_states:
        return
    job = "--hidden_states" if args.hidden_states else "--embed" if args.nearest is None else "--nearest"
    problems = [
        f"{flag} 與 {job} 不能一起用" + (f"：{HINTS[name]}" if name in HINTS else "")
        for name, flag in idle_flags(args, USED_BY[job]).items()
    ]
    if args.embed is not None and not args.hidden_states:
        problems += _file_problems(args)
    if args.nearest is not None and args.top_k < 1:
        problems.append(f"--top_k {args.top_k}：--nearest 至少要列出 1 列")
    if problems:
        raise UserError(problems)


def _file_problems(args: InferenceArgs) -> list[str]:
    source = Path(args.embed or "")
    if source.suffix.lower() == ".npy" and args.nearest is None and source.is_file():
        return [f"--embed {source} 是向量檔；要查最接近的列請加 --nearest TEXT"]
    problems = source_problems("--embed", source, *(VECTOR_SUFFIXES if args.nearest is not None else ()))
    if args.nearest is not None:
        return problems
    if args.output is None:
        return [
            *problems,
            "--embed 要與 --output（.parquet 或 .npy）一起給，或加 --nearest TEXT 查最接近的列",
        ]
    output = Path(args.output)
    problems += target_problems("--output", output, VECTOR_SUFFIXES)
    beside = [output, output.with_suffix(".ids.jsonl"), output.with_suffix(".json")]
    if any(is_same_file(source, path) for path in (beside if output.suffix.lower() == ".npy" else [output])):
        problems.append(f"--output {output} 會寫到 --embed 的檔案 {source} 上；請換一個名字")
    return problems
