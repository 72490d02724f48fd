"""Parity with transformers; needs torch (`make test-parity`). Built models are kept for the session."""

from pathlib import Path

import pytest
import torch
import transformers
from harness import Case, build

transformers.logging.set_verbosity_error()
torch.set_grad_enabled(False)
torch.set_num_threads(1)  # models are small: threads that wait for each other on a busy machine cost 20 times more


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """built(name, case) -> (directory, transformers' model), made once a session."""
    made: dict[str, tuple[Path, object]] = {}

    def make(name: str, case: Case):
        if name not in made:
            directory = tmp_path_factory.mktemp("models") / name
            made[name] = (directory, build(case, directory))
        return made[name]

    return make
