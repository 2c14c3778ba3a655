"""Layering of the code: wings import from those below, no file is long, no flag loads anything heavy."""

from __future__ import annotations

import ast
import functools

import pytest
from conftest import ROOT

WINGS = (  # bottom to top: a file imports from its own wing and from those below it
    "runtime", "data", "prompts", "demo", "models", "evaluation", "cli", "objectives", "reports", "training",
    "predict", "serving",
)  # fmt: skip
APART = {
    (user, other) for user in ("predict", "serving") for other in ("training", "objectives")
}  # although the order would allow it
LIGHT = ("runtime", "data", "prompts", "cli")  # wings that import no heavy library at the top of a file
HEAVY = {"torch", "transformers", "numpy", "datasets", "deepspeed"}
MAY_IMPORT_TORCH = {"finetune/runtime/distributed.py"}
LONGEST = 450  # lines of a file
PACKAGE = sorted((ROOT / "finetune").rglob("*.py"))
SCRIPTS = [ROOT / "fine_tuning_llm.py", ROOT / "inference.py"]


def named(path) -> str:
    return path.relative_to(ROOT).as_posix()


def wing_of(name: str) -> str:
    """`data` of finetune.data.exam; "" of the package itself."""
    return (name.split(".") + [""])[1]


def import_nodes(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(nodes) -> set[str]:
    """Dotted names of the modules imported, and of what is imported from them."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def imports(path) -> set[str]:
    return imported(import_nodes(ast.parse(path.read_text(encoding="utf-8"))))


def at_top(path) -> set[str]:
    """First parts of the modules that are imported with the file itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name.partition(".")[0] for name in imported(n for n in tree.body if n in import_nodes(tree))}


def file_of(name: str):
    return ROOT / (name.replace(".", "/") + ".py")


def reached_from(path) -> set:
    """Files of the package that a file imports, and those import, and so on."""
    found, waiting = set(), [path]
    while waiting:
        files = {file_of(name) for name in imports(waiting.pop()) if name.startswith("finetune.")}
        new = {file for file in files if file.is_file()} - found
        found |= new
        waiting += new
    return found


def test_every_file_stands_in_a_wing():
    folders = {path.parent.name for path in PACKAGE if path.parent.name != "finetune"}
    assert folders == set(WINGS)
    assert [path.name for path in PACKAGE if path.parent.name == "finetune"] == ["__init__.py"]


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_only_from_itself_and_from_wings_below(wing):
    allowed = {below for below in WINGS[: WINGS.index(wing) + 1] if (wing, below) not in APART}
    for path in (ROOT / "finetune" / wing).glob("*.py"):
        used = {wing_of(name) for name in imports(path) if name.startswith("finetune.")}
        assert used <= allowed, (named(path), used - allowed)


def test_imports_are_absolute_and_init_files_are_empty():
    for path in [*PACKAGE, *SCRIPTS]:
        nodes = import_nodes(ast.parse(path.read_text(encoding="utf-8")))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], named(path)
        if path.name == "__init__.py" and path.parent.name != "finetune":
            assert not path.read_text(encoding="utf-8"), named(path)


def test_no_file_imports_itself_through_others():
    for path in PACKAGE:
        assert path not in reached_from(path), named(path)


def test_the_package_never_imports_a_script_and_no_script_the_other():
    for path in [*PACKAGE, *SCRIPTS]:
        assert not imports(path) & {"fine_tuning_llm", "inference"}, named(path)


def test_only_training_imports_deepspeed():
    for path in [*PACKAGE, *SCRIPTS]:
        if path.parent.name != "training":
            assert "deepspeed" not in {name.partition(".")[0] for name in imports(path)}, named(path)


@pytest.mark.parametrize("wing", LIGHT)
def test_no_heavy_library_is_imported_with_a_file_of(wing):
    for path in (ROOT / "finetune" / wing).glob("*.py"):
        excused = {"torch"} if named(path) in MAY_IMPORT_TORCH else set()
        assert not at_top(path) & (HEAVY - excused), named(path)


def test_the_using_script_stands_on_no_training_code():
    wings = {path.parent.name for path in reached_from(ROOT / "inference.py")}
    assert "predict" in wings and not wings & {"training", "objectives"}


def test_a_file_has_at_most_450_lines():
    for path in [*PACKAGE, *SCRIPTS]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST, named(path)


def test_requirements_are_exact():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))
