"""Shell scripts pass shellcheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "script",
    [ROOT / "launch_tpu.sh", *sorted((ROOT / "tools").glob("*.sh")), *sorted((ROOT / ".ci").iterdir())],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_shell_scripts_are_clean(script: Path) -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker, "shellcheck is in the test extra"
    result = subprocess.run(
        [checker, "--shell=bash", "--severity=style", str(script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
