"""The floors of the house, enforced."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "medsynth"

FLOORS = {
    "": 0, "errors": 0, "seeding": 0, "digests": 0, "held": 0, "progress": 0, "memory": 0, "precision": 0, "config": 0,
    "kernels": 0,
    "imaging": 1, "cohort": 1, "models": 1,
    "diffusion": 2, "pacs": 2,
    "training": 3, "evaluation": 3, "tracking": 3, "reporting": 3,
    "stages": 4,
    "cli": 5, "commands": 5, "exits": 5, "verbs": 5, "console": 5, "doctor": 5, "__main__": 5,
}  # fmt: skip
"""Part -> floor. A module imports from its own floor or below."""

PARTS_THAT_MEET_ONLY_IN_STAGES = {("imaging", "cohort"), ("imaging", "models"), ("cohort", "models"), ("models", "cohort"),
                                  ("evaluation", "tracking"), ("reporting", "tracking"), ("training", "evaluation")}  # fmt: skip

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            if node.module == "medsynth":
                yield from (f"medsynth.{alias.name}" for alias in node.names if alias.name != "__version__")
            yield node.module or ""


def module_name(path: Path) -> str:
    return ".".join(("medsynth", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_never_go_up(path: Path) -> None:
    own = part_of(module_name(path))
    assert own in FLOORS, f"{own} has no floor"
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if name.split(".")[0] == "medsynth":
            part = part_of(name)
            assert FLOORS[part] <= FLOORS[own], (
                f"{path.name} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[part]})"
            )
            assert (own, part) not in PARTS_THAT_MEET_ONLY_IN_STAGES, f"{own} and {part} meet only in stages"


def test_only_tracking_imports_mlflow() -> None:
    for path in FILES:
        uses = any(name.split(".")[0] == "mlflow" for name in imports(ast.parse(path.read_text(encoding="utf-8"))))
        assert not uses or "tracking" in path.parts, path


def test_mlflow_folder_is_no_package() -> None:
    assert (ROOT / "mlflow" / "MLproject").exists()
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_files_are_of_readable_length() -> None:
    long = {str(path): lines for path in FILES if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 350}
    assert not long


def test_subpackages_are_empty_doors() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent in (PACKAGE, PACKAGE / "imaging" / "deidentify"):
            continue
        assert len(ast.parse(path.read_text(encoding="utf-8")).body) == 1, f"{path} holds more than its docstring"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from medsynth.cli import app\n"
        "for arguments in (['--help'], ['run', '--help'], ['config', 'schema']):\n"
        "    app(args=arguments, standalone_mode=False)\n"
        "heavy = {'torch', 'monai', 'diffusers', 'mlflow', 'numpy', 'pydicom'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_load_lazily_and_exist() -> None:
    code = "import sys, medsynth\nassert 'torch' not in sys.modules\n[getattr(medsynth, name) for name in medsynth.__all__]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_two_test_files_share_a_name():
    """Folders of tests are no packages, so a second file of a name is not collected together with the first."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []
