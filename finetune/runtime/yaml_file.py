"""Read YAML that people write as nodes within limits; what is wrong is said in Chinese, with the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.runtime.errors import UserError, reason


def read_node(path: Path, named: str, largest: int) -> Any:
    """Return the root node of a file's only document; None for a file without one.

    Args:
        path: the file.
        named: flag and file, for messages.
        largest: bytes that such a file has at most.

    Raises:
        UserError: it cannot be read, is too large, no UTF-8 or no YAML.
    """
    import yaml

    try:
        if path.exists() and not path.is_file():  # reading a pipe may wait for ever, a device never ends
            raise UserError(f"{named} 讀不到：不是一般的檔案")
        with path.open("rb") as stream:
            raw = stream.read(largest + 1)
        if len(raw) > largest:
            raise UserError(f"{named} 超過 {largest:,} 個位元組，不像這種檔案")
        return yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{named} 讀不到：{reason(error)}") from error
    except RecursionError:
        raise UserError(f"{named} 不是正確的 YAML：巢狀太深") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{named} 不是 UTF-8（第 {error.start + 1} 個位元組）") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a bad number in \U or in %YAML
        raise UserError(f"{named} 不是正確的 YAML{problem_of(error)}") from error


def problem_of(error: Exception) -> str:
    """Return where an error of PyYAML is, and in Chinese why where that is known; "" without a place.

    Its own words are English and speak of its tokens.
    """
    known = {
        "'\\t'": "縮排要用空格，不是 Tab", "expected a single document": "只能有一份文件，卻又有一個 ---",
        "duplicate anchor": "同一個 & 名稱用了兩次", "undefined alias": "* 後面的名稱沒有定義",
        "special characters are not allowed": "有控制字元",
        "could not determine a constructor": "不收標籤（!…）",
    }  # fmt: skip
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    text = str(error)
    why = next((words for sign, words in known.items() if sign in text), "")
    place = f"第 {mark.line + 1} 行第 {mark.column + 1} 個字" if mark else ""
    return "".join(f"：{part}" for part in (place, why) if part)


def twice(node: Any) -> list[str]:
    """Return the keys that a mapping holds twice: PyYAML would silently take the last."""
    keys = [key.value for key, _ in node.value if key.id == "scalar"]
    return [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
