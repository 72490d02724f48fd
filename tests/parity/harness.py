"""What the parity tests share: small models that transformers itself builds, runs and saves.

A case is a model class of transformers, a config and inputs. `tests/parity/cases_*.py` list them by name; each is run
live, and `test_golden.py` keeps what it gives in tests/golden/parity, where `make test` compares without torch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from weights import Shapes, write_weights

TOLERANCE = 1e-4
"""Largest difference of any number in float32."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A small model and what to feed it."""

    model: str
    """Class in transformers, such as LlamaForCausalLM."""
    config: Callable[[], transformers.PretrainedConfig]
    inputs: Callable[[], Arrays]
    """Arguments of the model's forward, as NumPy arrays; attention_mask (0 = padding) also says what is compared."""
    seed: int = 0


def saved_shapes(directory: Path) -> Shapes:
    """Shapes of all tensors in DIRECTORY/model.safetensors."""
    with safe_open(directory / "model.safetensors", "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def load(directory: Path, model: str) -> Any:
    """The model in a directory, in float32, with plain attention."""
    cls = getattr(transformers, model)
    return cls.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()


def build(case: Case, directory: Path) -> Any:
    """Saves the case's model with weights by name (`weights.value`), and gives it back as loaded from there."""
    torch.manual_seed(case.seed)
    getattr(transformers, case.model)(case.config()).eval().save_pretrained(directory)
    write_weights(directory, saved_shapes(directory), case.seed)
    return load(directory, case.model)


def run(model: Any, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """One forward pass of transformers: {name: float32 array}; hidden states as hidden_states.0, .1, …"""
    with torch.no_grad():
        out = model(**{k: torch.from_numpy(np.asarray(v)) for k, v in inputs.items()}, output_hidden_states=True)
    found: Arrays = {}
    for name in ("logits", "last_hidden_state", "pooler_output"):
        if (tensor := getattr(out, name, None)) is not None:
            found[name] = tensor.float().numpy()
    for number, tensor in enumerate(getattr(out, "hidden_states", None) or ()):
        found[f"hidden_states.{number}"] = tensor.float().numpy()
    return found


def real(array: np.ndarray, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The numbers at positions that are not padding."""
    mask = inputs.get("attention_mask")
    if mask is None or array.shape[:2] != mask.shape:
        return array
    return array[np.asarray(mask) != 0]


def assert_same(ours: Mapping[str, np.ndarray], theirs: Arrays, inputs: Mapping[str, np.ndarray]) -> None:
    """Everything that transformers gives, we give, within TOLERANCE; padding is left out."""
    assert theirs
    assert not (missing := theirs.keys() - ours.keys()), f"not given: {sorted(missing)}"
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, f"{name}: {ours[name].shape} for {expected.shape}"
        got, wanted = real(ours[name], inputs), real(expected, inputs)
        worst = float(np.abs(got - wanted).max(initial=0.0))
        assert worst <= TOLERANCE, f"{name}: differs by {worst:.2e}"


def greedy(model: Any, inputs: Mapping[str, np.ndarray], new_tokens: int = 64, use_cache: bool = True) -> np.ndarray:
    """The tokens that transformers appends greedily, int[B, new_tokens]; the end token does not stop it."""
    with torch.no_grad():
        out = model.generate(
            **{k: torch.from_numpy(np.asarray(v)) for k, v in inputs.items()},
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[:, inputs["input_ids"].shape[1] :].numpy()
