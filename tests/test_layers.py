"""The house: its rooms and floors, what may import what, and what stands in one place alone."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

GARDA = Path(__file__).parents[1] / "garda"
FLOORS = (  # from the ground; a room imports rooms of lower floors alone
    ("core",),
    ("training", "data"),
    ("models",),
    ("methods",),
    ("evaluation", "safety"),
    ("handover",),
    ("runs",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(GARDA.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def name_of(file: Path) -> str:
    """A file's module, without ``garda``; empty for the package itself."""
    return ".".join(file.relative_to(GARDA).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(file) for file in FILES}


def imported(file: Path) -> set[str]:
    """The modules of garda that a file imports, anywhere in it, for typing too."""
    found = set()
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "garda"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            if node.module and node.module.split(".")[0] == "garda":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    plain = {name.removeprefix("garda").lstrip(".") for name in found}
    return {name if name in MODULES else name.rpartition(".")[0] for name in plain} - {""}


def room_of(module: str) -> str:
    """The room of a module; empty for the files at the top."""
    return module.split(".")[0] if module.split(".")[0] in FLOOR else ""


def test_every_folder_is_a_room():
    folders = {path.name for path in GARDA.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(FLOOR) and len(folders) <= 9 and len(FLOORS) <= 7
    assert len([*GARDA.glob("*.py")]) <= 4


@pytest.mark.parametrize("file", [file for file in FILES if room_of(name_of(file))], ids=name_of)
def test_imports_point_down(file):
    room = room_of(name_of(file))
    upward = [name for name in imported(file) if room_of(name) != room and FLOOR.get(room_of(name), 99) >= FLOOR[room]]
    assert upward == []


def test_no_import_goes_round_in_a_circle():
    graph = {name_of(file): imported(file) - {name_of(file)} for file in FILES if file.name != "__init__.py"}
    assert len([*TopologicalSorter(graph).static_order()]) >= len(graph)  # a CycleError names the circle


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_can_be_held_in_the_head(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300
    functions = [node for node in ast.walk(TREES[file]) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60] == []


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("opened", "handover.verify"),  # reading a package from a path
        ("write_package", "runs.stage"),  # sealing, the end of a stage's order
        ("inspect_incoming", "runs.stage"),
        ("inspect_learnt", "runs.stage"),
    ],
)
def test_what_stands_once(name, place):
    calls = {
        name_of(file)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) == name
    }
    assert calls == {place}


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_the_architecture_page_names_every_file_of_a_room_and_no_other(room):
    page = (GARDA.parent / "docs/explain/architecture.md").read_text(encoding="utf-8")
    section = page.partition(f"\n### {room}\n")[2].partition("\n#")[0]
    files = {file.stem for file in (GARDA / room).glob("*.py")} - {"__init__"}
    files |= {folder.name for folder in (GARDA / room).iterdir() if (folder / "__init__.py").exists()}
    assert {name for name in files if not re.search(rf"\b{name}\b", section)} == set()
    named = {name.strip("/ ") for line in section.splitlines() for name in re.split("  +", line.strip())[0].split(",")}
    assert named - {""} <= files
