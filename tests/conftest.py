"""Options and paths that all tests share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden config dumps anew")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's directory."""
    return ROOT
