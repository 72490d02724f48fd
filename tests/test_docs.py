"""What the README and docs/ say can be done: code runs, commands parse, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from vlm_jax.cli import build_parser
from vlm_jax.config import load_experiment
from vlm_jax.overrides import apply_overrides

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def commands() -> list[tuple[str, list[str]]]:
    """(where, words) of every `vlm …` in a shell block or in a help text."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            found += [(page_id(page), line) for line in block.replace("\\\n", " ").splitlines()]
    for path in [*sorted((ROOT / "vlm_jax" / "commands").glob("*.py")), ROOT / "vlm_jax" / "cli.py"]:
        found += [(page_id(path), line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = []
    for where, line in found:
        match = re.match(r"\s*(?:\./launch_tpu\.sh .* -- +)?(vlm [a-z].*)$", line.removesuffix('"""'))
        if match:
            wanted.append((where, shlex.split(match[1], comments=True)[1:]))
    return wanted


COMMANDS = commands()


def test_commands_were_found() -> None:
    assert {where for where, _ in COMMANDS} >= {"README.md", "docs/evaluation.md", "vlm_jax/cli.py"}
    known = {"train", "eval", "compare", "generate", "serve", "convert", "data", "ablate", "rehearse"}
    assert {words[0] for _, words in COMMANDS} == known


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=lambda x: x if isinstance(x, str) else " ".join(x))
def test_command_parses(where: str, words: list[str]) -> None:
    parsed, rest = build_parser().parse_known_args(words)
    if getattr(parsed, "experiment", "").endswith(".py"):
        experiment = apply_overrides(load_experiment(str(ROOT / parsed.experiment)), rest)
        stage = getattr(parsed, "stage", None)
        assert stage is None or stage in {stage.name for stage in experiment.stages}
        assert {*(getattr(parsed, "tasks", None) or ())} <= {task.name for task in experiment.evaluation.tasks}
    else:
        passed_on = "experiment" not in parsed and getattr(parsed, "takes_overrides", False)
        assert not rest or passed_on


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_id)
def test_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """Blocks of a page continue each other; an experiment that a page shows can be loaded as a file."""
    text = "".join(blocks(page, "python"))
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(text, page_id(page), "exec"), names)
    if "experiment" in names:
        (tmp_path / "first.py").write_text(text, encoding="utf-8")
        assert load_experiment(str(tmp_path / "first.py")).stages


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [
        target for target in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()
    ]
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    listed = set(LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_docstring_drawings_are_those_of_the_page() -> None:
    """The row that batch.py draws and the mask that masks.py draws stand in docs/batch.md as they are."""
    page = [re.sub(r"\s+", " ", line).strip() for line in (ROOT / "docs" / "batch.md").read_text().splitlines()]
    for path, first, last in (
        ("vlm_jax/batch.py", "tokens         B v v", "visual_index  -1 0"),
        ("vlm_jax/models/masks.py", "v v t a a b b c c .", ". . . . . . . . . . ."),
    ):
        lines = [re.sub(r"\s+", " ", line).strip() for line in (ROOT / path).read_text().splitlines()]
        begin = next(n for n, line in enumerate(lines) if line.startswith(re.sub(r"\s+", " ", first)))
        end = next(n for n, line in enumerate(lines) if line.startswith(re.sub(r"\s+", " ", last)))
        assert set(lines[begin : end + 1]) <= set(page)
