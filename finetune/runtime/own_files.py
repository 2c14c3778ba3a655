"""Files that a person put into a model folder: notes, a .git, what another tool made of the model. The folder
is replaced as a whole by the next run; they are not this program's to delete.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

# What transformers, peft, tokenizers and this program write to a model folder.
OF_MODELS = re.compile(
    r"config\.json|generation_config\.json|adapter_config\.json|run_card\.json|all_results\.json|manifest\.json"
    r"|(adapter_)?(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.txt|vocab\.json|merges\.txt|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model"
    r"|chat_template\.(jinja|json)|additional_chat_templates|(pre|)processor_config\.json|README\.md"
    r"|\..*\.(half|old|gone|lock)|\.lock"
)


def own_files(folder: Path) -> list[str]:
    """Names in a model folder that are no part of the model."""
    if not folder.is_dir():
        return []
    return sorted(name for name in os.listdir(folder) if is_own(name))


def is_own(name: str) -> bool:
    return not OF_MODELS.fullmatch(name)


def carry_over(former: Path, new: Path) -> list[str]:
    """Puts a person's files of the former folder into the one that is to take its place; returns their names.
    They are there twice until the former one is deleted: whenever a run is killed, none is lost.

    Raises:
        OSError: a file cannot be read or written.
    """
    names = [name for name in own_files(former) if not os.path.lexists(new / name)]
    for name in names:
        path = former / name
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / name, symlinks=True, copy_function=_link)
        else:
            _link(str(path), str(new / name))
    return names


def _link(path: str, to: str, *, follow_symlinks: bool = False) -> None:
    """A second name for a file or, where the file system knows none, a copy."""
    try:
        os.link(path, to, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(path, to, follow_symlinks=False)
