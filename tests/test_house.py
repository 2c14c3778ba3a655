"""The rules of the house: who may import whom."""

import ast
from pathlib import Path

from conftest import ROOT

PACKAGE = sorted((ROOT / "finetune").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Names of the project's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = path.parent if node.level == 1 else path.parent.parent
                base = ".".join([*home.relative_to(ROOT).parts, *([base] if base else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def test_the_package_never_imports_a_script():
    for path in PACKAGE:
        assert not imports(path) & {"fine_tuning_llm", "inference"}, path


def test_inference_stands_on_no_training_code():
    reached, waiting = set(), [ROOT / "inference.py"]
    while waiting:
        for name in imports(waiting.pop()):
            path = ROOT / (name.replace(".", "/") + ".py")
            if name.startswith("finetune.") and path.is_file() and path not in reached:
                reached.add(path)
                waiting.append(path)
    names = {path.stem for path in reached}
    assert "scoring" in names and not names & {"engine", "checkpoints", "objectives", "masking", "batching"}
    assert not any(imports(path) & {"datasets", "deepspeed"} for path in reached)


def test_arrows_run_one_way():
    walked = set()  # each once: there are millions of ways from top to bottom

    def reach(path, seen):
        if path in walked:
            return
        for name in imports(path):
            target = ROOT / (name.replace(".", "/") + ".py")
            if name.startswith("finetune.") and target.is_file():
                assert target not in seen, f"circle: {[p.stem for p in (*seen, target)]}"
                reach(target, (*seen, target))
        walked.add(path)

    for path in PACKAGE:
        reach(path, (path,))


def test_a_room_has_at_most_about_400_lines():
    for path in [*PACKAGE, ROOT / "fine_tuning_llm.py", ROOT / "inference.py"]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path


def test_requirements_are_exact():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))
