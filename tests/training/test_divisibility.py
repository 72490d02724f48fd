"""Numbers that do not divide among the devices are an error before data are read."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh, AxisType

from vlm_jax.config import load_experiment
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params
from vlm_jax.models.vlm import VLM
from vlm_jax.parallel import Layout, check_fits
from vlm_jax.parallel.rules import AXES, resolve_rules
from vlm_jax.training.divisibility import check_layout, check_length, check_rows

MU = Path(__file__).parents[2] / "experiments" / "mu.py"


def absent(data=1, fsdp=1, tensor=1, sequence=1, **rules) -> Layout:
    """A layout over devices that are not there."""
    mesh = AbstractMesh((data, fsdp, sequence, tensor), AXES, axis_types=(AxisType.Auto,) * 4)
    return Layout(mesh, resolve_rules(rules))


def with_decoder(**sizes):
    """The parameters of a mu whose decoder has other sizes."""
    model = load_experiment(str(MU)).model
    return boxed_params(VLM(dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, **sizes))))


def test_what_divides_is_let_through():
    check_fits(with_decoder(), absent(2, 4, 2))


@pytest.mark.parametrize(
    ("sizes", "mesh", "message"),
    [
        ({"heads": 6, "key_value_heads": 6}, {"tensor": 4}, "the key_value_heads of .* are 6, .* tensor = 4 devices"),
        ({"heads": 6}, {"tensor": 4, "key_value_heads": ()}, "the heads of .*/kernel are 6, .* tensor = 4 devices"),
        ({"mlp_width": 90}, {"tensor": 4, "key_value_heads": ()}, "the mlp of .*/kernel are 90, .* mesh.rules mlp"),
        ({"width": 36}, {"fsdp": 8}, "the vision_embed of .* are 36, which do not divide among fsdp = 8 devices"),
        ({"vocabulary_size": 1023}, {"tensor": 2}, r"the vocab of .* are 1,023, .* \(1,024 would divide\)"),
    ],
)
def test_a_parameter_that_does_not_divide_is_named(sizes, mesh, message):
    with pytest.raises(UserError, match=f"mesh: {message}"):
        check_fits(with_decoder(**sizes), absent(**mesh))


def test_tokens_that_are_only_read_count_with_the_vocabulary():
    params = with_decoder(vocabulary_size=1024, input_only_tokens=1, tied_embeddings=False)
    with pytest.raises(UserError, match="the vocab of decoder/embedding are 1,025"):
        check_fits(params, absent(tensor=2))


def test_another_rule_mends_it():
    params = with_decoder(heads=6, key_value_heads=2)
    check_fits(params, absent(tensor=4, heads=(), key_value_heads=()))


def test_rows_that_do_not_divide_are_a_user_error():
    stage = load_experiment(str(MU)).stages[0]
    check_rows(stage, absent(2, 2))
    for accumulation, mesh in ((1, absent(8)), (2, absent(2, 2))):
        with pytest.raises(UserError, match=rf"stage captions: {4 // accumulation} rows .* data x fsdp = "):
            check_rows(dataclasses.replace(stage, accumulation=accumulation), mesh)


def test_positions_that_do_not_divide_are_a_user_error():
    stage = load_experiment(str(MU)).stages[0]
    length = stage.data.length
    check_length(stage, absent(sequence=2))
    odd = dataclasses.replace(stage, data=dataclasses.replace(stage.data, length=length + 1))
    message = rf"stage captions: {length + 1} positions a row .* sequence = 2 devices; {length + 2} would"
    with pytest.raises(UserError, match=message):
        check_length(odd, absent(sequence=2))


def test_all_of_an_experiment_is_checked():
    experiment = load_experiment(str(MU))
    check_layout(experiment, absent(sequence=2))
    with pytest.raises(UserError, match="4 rows"):
        check_layout(experiment, absent(data=8))
    with pytest.raises(UserError, match="positions a row"):
        check_layout(experiment, absent(sequence=7))
    with pytest.raises(UserError, match="key_value_heads"):
        check_layout(experiment, absent(tensor=4))


def test_training_says_so_in_one_line_before_it_reads_data(tmp_path):
    command = [sys.executable, "-m", "vlm_jax.cli", "train", str(MU), "--workdir", str(tmp_path), "--mesh.rules"]
    done = subprocess.run([*command, "haeds", "tensor"], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no model has an axis 'haeds'" in done.stderr
