"""The rules of docs/architecture.md: which package may import which, how long modules are, and which words are not used as names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIB = ROOT / "lib"
MODULES = sorted(p for p in LIB.rglob("*.py"))
LONGEST_MODULE = 300  # lines

# From the lowest layer to the highest. A package may import itself and those before it, but for the exceptions below.
LAYERS = ("common", "imaging", "prompts", "model", "propagation", "quality", "engine", "samples", "training", "evaluation", "serving")
FORBIDDEN = {("training", "samples"), ("evaluation", "samples"), ("evaluation", "training"), ("samples", "model"),
             ("samples", "propagation"), ("samples", "quality"), ("samples", "engine")}  # fmt: skip
ONLY_IMPORTERS = {"sam2": ("lib/model",), "monailabel": ("lib/serving", "apps")}

# Words that once were names here and that only their author understood.
OLD_WORDS = frozenset(
    ["said", "drawn", "shown", "seen", "Stretch", "Span", "Job", "Group", "Part", "Ends", "drop", "gain", "looks", "table_of", "contrast", "closer", "closer_look", "parts_to_follow", "lanes", "Team", "_Team", "soon", "also", "spare", "Ticks", "quicken", "heads", "traits", "truth", "piece", "Scene", "Need", "Card", "Rounds", "Turns", "front", "watch"]
)


def imported_modules(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def defined_names(path: Path) -> set[str]:
    """Return the names that a file defines: functions, classes, arguments, variables and attributes of self."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.alias) and node.asname:
            found.add(node.asname)
    return found


def test_modules_import_only_what_lies_below_them():
    wrong = []
    for path in MODULES:
        package = path.relative_to(LIB).parts[0]
        imported = {module.split(".")[1] for module in imported_modules(path) if module.startswith("lib.")} & set(LAYERS)
        above = {p for p in imported if LAYERS.index(p) > LAYERS.index(package) or (package, p) in FORBIDDEN}
        wrong += [f"{path.relative_to(ROOT)} must not import lib.{p}" for p in sorted(above)]
    assert not wrong


@pytest.mark.parametrize("library", ONLY_IMPORTERS)
def test_only_one_room_knows_a_library(library):
    code = [*MODULES, ROOT / "main.py", *(ROOT / "apps").rglob("*.py")]
    users = {str(p.relative_to(ROOT)) for p in code if any(m.split(".")[0] == library for m in imported_modules(p))}
    assert users and all(u.startswith(ONLY_IMPORTERS[library]) for u in users), users


def test_every_module_lies_in_a_package_and_every_package_says_what_belongs_there():
    assert [p.name for p in LIB.glob("*.py")] in ([], ["__init__.py"])
    assert {p.name for p in LIB.iterdir() if p.is_dir() and p.name != "__pycache__"} == set(LAYERS)
    for package in LAYERS:
        text = ast.get_docstring(ast.parse((LIB / package / "__init__.py").read_text())) or ""
        assert len(text.split()) >= 10, f"lib/{package}/__init__.py says nothing"


def test_modules_are_short():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: n for name, n in lines.items() if n > LONGEST_MODULE}


def test_names_are_the_terms_of_the_field():
    used = {str(path.relative_to(ROOT)): OLD_WORDS & {*defined_names(path), path.stem} for path in MODULES}
    assert not {name: words for name, words in used.items() if words}
