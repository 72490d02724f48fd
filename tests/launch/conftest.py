"""A cloud of its own for every test of the launcher."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_cloud import Cloud


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path)
    yield made
    for process in made.processes():
        os.kill(process, signal.SIGKILL)
