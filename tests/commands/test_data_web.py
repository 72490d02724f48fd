"""`vlm data prepare web` as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vlm_jax.cli import DONE, WRONG_INPUT, run

pytest.importorskip("apache_beam")

PASSAGES = (
    "The crop tool removes areas from the edge of an image, so that viewers look at what matters.",
    "Layers lie above each other like sheets of glass, and each may be moved without its neighbours.",
)


def vlm(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlm_jax.cli", "data", "prepare", "web", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    dots = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "a.png"), cv2.resize(dots, (120, 90), interpolation=cv2.INTER_CUBIC))
    body = "".join(f"<p>{text}</p>" for text in PASSAGES)
    (folder / "a.html").write_text(f"{body}<img src=a.png><p>The end.</p>")
    return folder


def test_pages_in_shards_out_with_flags_of_beam_anywhere(pages: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "web")
    done = vlm(str(pages), "--output", output, "--", "--direct_num_workers=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 records in 1 shards" in done.stdout
    again = vlm("--output", output, str(pages), "--", "--direct_num_workers=1")
    assert again.returncode == 0
    assert "already there" in again.stdout
    assert json.loads((tmp_path / "web/manifest.json").read_text())["records"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no INPUT"),
        (["x.warc"], "--output DIR is missing"),
        (["nowhere", "--output", "out"], "nowhere: neither a directory"),
        (["PAGES", "--ouptut", "out"], "--output DIR is missing"),
        (["PAGES", "--output", "OUT", "--shards=3"], "--shards=3: neither an option of this command nor one of Beam's"),
        (["PAGES", "--output", "OUT", "--config", "nowhere.json"], "nowhere.json: cannot be read"),
        (["PAGES", "--output", "OUT", "--decontaminate", "nowhere"], "nowhere: there is no such file"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_output(
    words: list[str], message: str, pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"PAGES": str(pages), "OUT": str(tmp_path / "out")}
    assert run(["data", "prepare", "web", *(names.get(word, word) for word in words)]) == WRONG_INPUT
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_config_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "prepare", "web", "--print-config"]) == DONE
    assert json.loads(capsys.readouterr().out)["pictures"]["least_pictures"] == 1
