"""The project as a whole: every experiment traces and is dumped, the wheel holds what it should, locks are locks."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import jax
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vlm_jax.config import Experiment, load_experiment
from vlm_jax.models.presets import PRESETS
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.parallel import MeshConfig, build_layout, use_layout
from vlm_jax.serialise import from_plain, to_json
from vlm_jax.training.program import build_program

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
PACKAGES = ("data_pipelines", "vlm_jax")
FORBIDDEN = ("torch", "tensorflow", "transformers")


def compare_with_golden(name: str, dump: str, config: pytest.Config) -> None:
    """The dump is the one in tests/golden, so that a review sees what a change did to every config."""
    path = GOLDEN / f"{name}.json"
    if config.getoption("--update-golden"):
        path.write_text(dump, encoding="utf-8")
    assert path.exists(), f"tests/golden/{path.name} is missing; `make golden` writes it"
    assert dump == path.read_text(encoding="utf-8"), (
        f"tests/golden/{path.name} differs; if the change is meant, `make golden` writes it anew"
    )


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_the_golden_one(path: Path, request: pytest.FixtureRequest) -> None:
    experiment = load_experiment(str(path))
    assert experiment.name == path.stem
    dump = to_json(experiment)
    assert from_plain(Experiment, json.loads(dump)) == experiment
    compare_with_golden(path.stem, dump, request.config)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_the_golden_one(name: str, request: pytest.FixtureRequest) -> None:
    dump = to_json(PRESETS[name]())
    assert from_plain(VLMConfig, json.loads(dump)) == PRESETS[name]()
    compare_with_golden(f"preset_{name}", dump, request.config)


def test_no_golden_dump_is_left_over() -> None:
    expected = {path.stem for path in EXPERIMENTS} | {f"preset_{name}" for name in PRESETS}
    assert {path.stem for path in GOLDEN.glob("*.json")} == expected


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_stage_of_an_experiment_traces(path: Path) -> None:
    experiment = load_experiment(str(path))
    layout = build_layout(MeshConfig())
    for index, stage in enumerate(experiment.stages):
        program = build_program(experiment, index, layout)
        with use_layout(layout):
            state, batch = program.abstract_state(), program.abstract_encoded()
            after, metrics = jax.eval_shape(program.step, state, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        assert metrics["loss"].shape == ()
        assert metrics["cross_entropy"].shape == (len(stage.data.mixture),)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the source archive, built from a copy with nothing left of earlier builds."""
    copy = tmp_path_factory.mktemp("copy") / "project"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, copy, ignore=ignore)
    command = [sys.executable, "-m", "build", "--no-isolation"]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return copy / "dist"


def test_wheel_holds_the_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    contents = {name for name in names if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert contents == expected
    assert {"data_pipelines/py.typed", "vlm_jax/py.typed", "data_pipelines/look/row_page.html.j2"} <= contents
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        (scripts,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        text, entry_points = archive.read(metadata).decode(), archive.read(scripts).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert "vlm = vlm_jax.cli:main" in entry_points


def test_source_archive_can_be_read_by_a_person(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names


def locked(name: str) -> dict[str, str]:
    """{canonical name: version} of a lock file, with those of the locks it includes."""
    versions: dict[str, str] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        if line.startswith("-r "):
            versions |= locked(line.removeprefix("-r "))
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.+!]*)", line)
        assert match, f"{name}: {line!r} pins no version"
        assert canonicalize_name(match[1]) not in versions, f"{name}: {match[1]} is there twice"
        versions[canonicalize_name(match[1])] = match[2]
    return versions


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("base.lock", ()),
        ("test.lock", ("test",)),
        ("parity.lock", ("test", "parity")),
        ("offline-weights.lock", ("offline-weights",)),
    ],
)
def test_lock_satisfies_the_project(lock: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    weights_only = lock == "offline-weights.lock"  # goes on top of base.lock, without dependencies
    wanted = [] if weights_only else [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in extras:
        wanted += project["project"]["optional-dependencies"][extra]
    versions = locked(lock)
    for text in wanted:
        requirement = Requirement(text)
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, text
    assert "parity" in extras or not versions.keys() & set(FORBIDDEN)


def test_what_runs_here_is_what_is_locked() -> None:
    """The figures in the README are those of the locked versions, so the tests shall be as well."""
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece"):
        installed = importlib.metadata.version(name)
        assert installed == locked("base.lock")[name], f"{name} {installed} is installed; `make test` installs the lock"


def test_an_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    code = "import sys; sys.version_info, sys.version = (3, 10, 4), '3.10.4 (old)'; exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    old.chmod(0o755)
    command = ["make", "--silent", "quickstart", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    first = result.stderr.splitlines()[0]
    assert "Python 3.10.4: install 3.11 or newer" in first
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "venv").exists()
