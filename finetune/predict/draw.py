"""--draw: the five figures of a model from its configuration alone, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.inference_args import InferenceArgs, required
from finetune.reports import report_folder
from finetune.reports.figure_files import NAMES, OF_FIGURES
from finetune.runtime import hub
from finetune.runtime.console import MODEL_FOLDER, as_json, is_main_process, log, print_result
from finetune.runtime.errors import UserError
from finetune.runtime.server_address import is_server

if TYPE_CHECKING:  # torch waits until the folder has been looked at
    from finetune.reports.figures import Subject

FLAG = "--model_path"
PLAIN_NAMES = {"bert": "BERT 編碼器", "gpt": "GPT 解碼器", "families": "三種架構並列", "layers": "哪些層在學",
               "transfer": "遷移學習的流程"}  # fmt: skip


def draw_figures(flags: InferenceArgs) -> None:
    """Draw the five figures of --draw into their folder; print their files, or one object.

    Raises:
        UserError: a folder that is none or holds files of others, a model that is none.
        RunError: the figures cannot be written.
    """
    folder = Path(required(flags.draw))
    if is_server(flags.model_path):
        raise UserError(
            f"{FLAG} {flags.model_path}：伺服器上的模型看不到 config.json，畫不出來；"
            "請給資料夾或 hub 上的名稱"
        )
    report_folder.check_folder(folder, "--draw", OF_FIGURES)
    from finetune.reports import figures

    subject = _subject(flags)
    try:
        drawn = figures.draw(subject)
    except UserError as error:
        raise UserError([f"{FLAG} {flags.model_path}：{problem}" for problem in error.problems]) from error
    if not is_main_process():
        return  # drawn once, however many processes a launcher started
    figures.write_figures(folder, drawn.files)
    for note in drawn.notes:
        log(f"⚠️ {note}")
    files = {name: str(folder / f"{name}.svg") for name in NAMES}
    if flags.json:
        print_result(as_json({name: {"file": file, **drawn.facts[name]} for name, file in files.items()}))
        return
    for name, file in files.items():
        print_result(f"{file}　{PLAIN_NAMES[name]}{_counted(drawn.facts[name])}")


def _counted(facts: dict) -> str:
    """Return what was counted, in words; "" where several models were."""
    if "model" not in facts:
        return ""
    return f"（{facts['model']}，{facts['parameters']:,} 個參數）"


def _subject(flags: InferenceArgs) -> Subject | None:
    """Return the configuration of --model_path; None where none was named and the default one is not there.

    Raises:
        UserError: no such folder, no config.json, a configuration that makes no sense.
    """
    path = hub.resolve_cache_folder(flags.model_path)
    if "model_path" not in flags.given and path == MODEL_FOLDER and not Path(path).exists():
        log(f"沒有 {FLAG}，也沒有 {MODEL_FOLDER}：照 transformers 的預設設定畫")
        return None
    from finetune.models.loading import load_config
    from finetune.models.run_card import RunCard
    from finetune.models.source_checks import base_of, check_source
    from finetune.reports.figures import Subject

    check_source(path, FLAG, config_only=True)
    read, what = path, FLAG
    if not (Path(path).expanduser() / "config.json").is_file() and (base := base_of(path)):
        read, what = base, f"{FLAG} {path} 的底模"
        check_source(read, what, config_only=True)
    hub.prepare_for(read)
    config = load_config(read, what, "encoder")  # any family; what cannot be drawn is said
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return Subject(config, path, f"{path} 的 config.json")
    steps = folder.resolve().parts
    name = "/".join(steps[-2:]) if steps[-1] == "model" else steps[-1]  # a run has its own name above it
    return Subject(config, name, f"{name} 的 config.json", RunCard.read(path))
