"""The house keeps its shape: imports point one way, files and functions stay short, nothing names one machine."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    {"errors"},
    {"pictures", "serialise"},
    {"batch"},
    {"data_pipelines", "models", "optim", "parallel"},
    {"losses", "generation", "convert"},
    {"config"},
    {"checkpoints", "overrides"},
    {"training", "serving"},
    {"evaluation", "rehearsal"},
    {"ablation"},
    {"commands"},
    {"cli"},
)
"""A part may import itself and the layers above its own in this list; parts of one layer do not import each other."""

ONLY_IN = {
    "grain": ("data_pipelines/mixture.py", "data_pipelines/loader.py", "data_pipelines/sources/"),
    "flax.linen": ("vlm_jax/models/", "vlm_jax/parallel/", "vlm_jax/checkpoints/handoff.py"),
    "orbax": ("vlm_jax/checkpoints/",),
    "cv2": ("data_pipelines/", "vlm_jax/evaluation/report/"),
    "tyro": ("vlm_jax/overrides.py",),
    "apache_beam": ("data_pipelines/prepare/",),
    "tensorflow_datasets": ("data_pipelines/sources/tfds.py", "data_pipelines/prepare/"),
    "pyarrow": ("data_pipelines/sources/parquet.py",),
    "torch": (),
    "tensorflow": (),
    "transformers": (),
    "pickle": (),
}
"""Where a library may be imported in the packages, so that replacing it stays a matter of a few files."""

DATA_SETS = ("data_pipelines.sources", "data_pipelines.kinds", "data_pipelines.mixture", "data_pipelines.loader")

MACHINE_PATH = re.compile(r"(?<![\w.}$~-])/(?:root|work|home/\w+|Users/\w+|tmp/\w+)/")

PACKAGE_FILES = sorted(
    path.relative_to(ROOT) for package in ("vlm_jax", "data_pipelines") for path in (ROOT / package).rglob("*.py")
)
PYTHON_FILES = sorted(
    {
        *PACKAGE_FILES,
        *(
            path.relative_to(ROOT)
            for folder in ("experiments", "benchmarks", "tests")
            for path in (ROOT / folder).rglob("*.py")
        ),
    }
)


def tree_of(path: Path, root: Path = ROOT) -> ast.Module:
    return ast.parse((root / path).read_text(encoding="utf-8"))


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Absolute names of everything a file imports, at any depth of nesting: modules, and names taken from them."""
    found = set()
    package = path.parent.parts
    for node in ast.walk(tree_of(path, root)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def part_of(module: str) -> str | None:
    """The part of the house that a module belongs to; None for libraries and for the bare package."""
    names = module.split(".")
    if names[0] == "vlm_jax":
        return names[1] if len(names) > 1 else None
    return "data_pipelines" if names[0] == "data_pipelines" else None


def own_part(path: Path) -> str | None:
    return part_of(".".join(path.with_suffix("").parts).removesuffix(".__init__"))


def is_under(module: str, library: str) -> bool:
    return module == library or module.startswith(f"{library}.")


def wrong_imports(path: Path, root: Path = ROOT) -> Iterator[str]:
    own = own_part(path)
    if own is None:
        return
    level = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    for module in sorted(imports(path, root)):
        other = part_of(module)
        if other not in (None, own) and (other not in level or level[other] >= level[own]):
            yield f"{path} imports {module}"


def test_every_part_has_a_layer() -> None:
    assert {own_part(path) for path in PACKAGE_FILES} - {None} == set().union(*LAYERS)


def test_imports_point_one_way() -> None:
    assert [line for path in PACKAGE_FILES for line in wrong_imports(path)] == []


def test_packages_import_nothing_that_stands_beside_them() -> None:
    beside = ("experiments", "benchmarks", "tests")
    assert [
        f"{path} imports {module}"
        for path in PACKAGE_FILES
        for module in sorted(imports(path))
        if module.split(".")[0] in beside
    ] == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_stays_in_its_place(library: str) -> None:
    allowed = ONLY_IN[library]
    strays = [
        str(path)
        for path in PACKAGE_FILES
        if any(is_under(module, library) for module in imports(path))
        and not any(path.as_posix().startswith(place) for place in allowed)
    ]
    assert strays == []


def test_data_pipelines_never_import_jax() -> None:
    for path in PACKAGE_FILES:
        if own_part(path) == "data_pipelines":
            assert not any(is_under(module, name) for module in imports(path) for name in ("jax", "flax")), path


@pytest.mark.parametrize("part", ["models", "losses", "optim", "parallel", "checkpoints", "convert"])
def test_parts_that_know_no_data_set(part: str) -> None:
    for path in PACKAGE_FILES:
        if own_part(path) == part:
            assert not any(is_under(module, name) for module in imports(path) for name in DATA_SETS), path


def test_the_check_itself_sees_wrong_imports(tmp_path: Path) -> None:
    path = Path("vlm_jax/models/bad.py")
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(
        "def late():\n    from vlm_jax.parallel import mesh\nfrom ..training import loop\nimport vlm_jax.models.vit\n"
    )
    assert list(wrong_imports(path, tmp_path)) == [
        f"{path} imports vlm_jax.{module}" for module in ("parallel", "parallel.mesh", "training", "training.loop")
    ]


def test_files_of_tests_have_names_of_their_own() -> None:
    names = [path.name for path in PYTHON_FILES if path.parts[0] == "tests" and path.name != "conftest.py"]
    assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize("path", PYTHON_FILES, ids=str)
def test_files_and_functions_are_short(path: Path) -> None:
    lines = (ROOT / path).read_text(encoding="utf-8").count("\n")
    assert lines <= (150 if path == Path("vlm_jax/training/loop.py") else 400)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 100, node.name


def test_public_functions_of_the_packages_have_docstrings() -> None:
    bare = []
    for path in PACKAGE_FILES:
        tree = tree_of(path)
        if path.name != "__init__.py" and ast.get_docstring(tree) is None:
            bare.append(str(path))
        for node in tree.body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and ast.get_docstring(node) is None
            ):
                bare.append(f"{path}: {node.name}")
    assert bare == []


def test_no_file_names_a_place_on_one_machine() -> None:
    skipped = {".git", ".venv", "runs", "build", "dist", "LICENSE"}
    suffixes = {".py", ".md", ".toml", ".sh", ".txt", ".lock", ".json", ".j2", ".css", ".cfg", ".yml", ""}
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = parts[0].startswith(".") and parts[0] != ".ci"
        if hidden or skipped & {*parts} or "__pycache__" in parts or path.suffix not in suffixes or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cd /ro" + "ot/x", True),
        ("/tm" + "p/lab/v", True),
        ("'/ho" + "me/anna/runs'", True),
        ("$HOME/ro" + "ot/x", False),
        ("~/ro" + "ot/x", False),
        ("runs/ro" + "ot/x", False),
        ("/tmp/", False),
    ],
)
def test_what_counts_as_such_a_place(text: str, named: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) == named
