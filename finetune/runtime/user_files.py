"""Files that the user put into a model folder: notes, a .git, another tool's conversion of the model.

The next run replaces the folder as a whole; these files must survive that.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

# Files that transformers, peft, tokenizers and this program write to a model folder.
MODEL_FILES = re.compile(
    r"config\.json|generation_config\.json|adapter_config\.json|run_card\.json|all_results\.json|manifest\.json"
    r"|(adapter_)?(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.txt|vocab\.json|merges\.txt|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model"
    r"|chat_template\.(jinja|json)|additional_chat_templates|(pre|)processor_config\.json|README\.md"
    r"|\..*\.(half|old|gone|lock)|\.lock"
)


def user_files(folder: Path) -> list[str]:
    """List the names in a model folder that are not part of the model."""
    if not folder.is_dir():
        return []
    return sorted(name for name in os.listdir(folder) if is_user_file(name))


def is_user_file(name: str) -> bool:
    """Return True for the name of a file that the user put there."""
    return not MODEL_FILES.fullmatch(name)


def carry_over(former: Path, new: Path) -> list[str]:
    """Link or copy the user's files of the former folder into the new one; return their names.

    They exist twice until the former folder is deleted, so that none is lost whenever a run is killed.

    Raises:
        OSError: a file cannot be read or written.
    """
    names = [name for name in user_files(former) if not os.path.lexists(new / name)]
    for name in names:
        path = former / name
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / name, symlinks=True, copy_function=_link)
        else:
            _link(str(path), str(new / name))
    return names


def _link(path: str, to: str, *, follow_symlinks: bool = False) -> None:
    """Make a hard link to a file or, where the file system has none, a copy."""
    try:
        os.link(path, to, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(path, to, follow_symlinks=False)
