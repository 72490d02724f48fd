"""`vlm convert` as a user calls it: in, out, and in again; and what it refuses."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data_pipelines.template import TemplateConfig, load_processor
from vlm_jax import cli
from vlm_jax.checkpoints.converted import save_converted
from vlm_jax.checkpoints.files import read_files
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.convert import load_hf, save_hf
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import MLPAdapterConfig
from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.parallel import abstract_params

LLM = DecoderConfig(
    vocabulary_size=24, width=8, layers=2, heads=2, key_value_heads=1, head_size=4, mlp_width=12, context=64
)
WORDS = ("<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "what", "is", "it", "a", "circle", "\n")
PROGRAM = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def random_params(config: Any) -> Any:
    rng = np.random.default_rng(0)
    shapes = abstract_params(boxed_params(build_model(config)))
    return jax.tree.map(lambda leaf: jax.numpy.asarray(rng.standard_normal(leaf.shape, np.float32)), shapes)


def same_bits(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture
def vlm(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `vlm ARGUMENTS`, which must succeed; gives what it printed."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert cli.run([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `vlm convert ARGUMENTS`, which must end with code 2 and one line; gives that line."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert cli.run(["convert", *map(str, arguments)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    return call


@pytest.fixture(scope="session")
def hf_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLM in Hugging Face format, with a tokenizer of words and a chat template; not to be changed."""
    directory = tmp_path_factory.mktemp("hf") / "llm"
    save_hf(LLM, random_params(LLM), directory)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": PROGRAM}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_an_llm_goes_in_and_out_and_in(vlm: Any, hf_llm: Path, tmp_path: Path) -> None:
    out = vlm("convert", "from-hf", hf_llm, tmp_path / "a")
    assert out == f"{tmp_path / 'a'}: VLM of 0.0 M parameters\n"
    model = load_model(str(tmp_path / "a"))
    assert model.config.decoder == LLM
    assert same_bits(model.params["decoder"], load_hf(hf_llm)[1])
    vlm("convert", "to-hf", tmp_path / "a", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (hf_llm / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "config.json").read_bytes() == (hf_llm / "config.json").read_bytes()
    vlm("convert", "from-hf", tmp_path / "out", tmp_path / "b")
    asked = [vlm("generate", "--model", tmp_path / x, "--prompt", "what is it", "--max-new-tokens", 5) for x in "ab"]
    assert asked[0] == asked[1]


def test_a_dtype_can_be_asked_for(vlm: Any, hf_llm: Path, tmp_path: Path) -> None:
    vlm("convert", "from-hf", hf_llm, tmp_path / "a", "--dtype", "bfloat16")
    leaves = jax.tree.leaves(load_model(str(tmp_path / "a")).params)
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}


@pytest.fixture(scope="session")
def trained(tiny: Any, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language model as training leaves it, with the two-layer adapter that LLaVA has."""
    directory = tmp_path_factory.mktemp("trained") / "model"
    config = dataclasses.replace(tiny.model.config, adapter=MLPAdapterConfig(layers=2))
    processor = load_processor(saved / "processor")
    processor = dataclasses.replace(processor, template=TemplateConfig(bidirectional_images=False))
    processor.save(directory.parent / "processor")
    save_converted(directory, config, random_params(config), read_files(directory.parent / "processor"))
    return directory


def test_a_model_trained_here_goes_out_and_in(vlm: Any, trained: Path, tmp_path: Path) -> None:
    vlm("convert", "to-hf", trained, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    vlm("convert", "from-hf", tmp_path / "out", tmp_path / "back")
    assert same_bits(load_model(str(tmp_path / "back")).params, load_model(str(trained)).params)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_part_goes_out_by_itself(vlm: Any, trained: Path, tmp_path: Path, part: str) -> None:
    vlm("convert", "to-hf", trained, tmp_path / "out", "--part", part)
    model = load_model(str(trained))
    config, params = load_hf(tmp_path / "out")
    assert config.width == getattr(model.config, part).width
    assert same_bits(params, model.params[part])


def test_an_encoder_by_itself_goes_in_and_out(vlm: Any, tmp_path: Path) -> None:
    config = ConvNeXtConfig(image_size=(32, 32), depths=(1,), widths=(8,))
    save_hf(config, random_params(config), tmp_path / "hf")
    vlm("convert", "from-hf", tmp_path / "hf", tmp_path / "native")
    vlm("convert", "to-hf", tmp_path / "native", tmp_path / "out")
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_sources_that_cannot_be_read(refused: Any, hf_llm: Path, trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    assert "no checkpoint there" in refused("from-hf", tmp_path / "nowhere", target)
    assert "there is no config.json" in refused("from-hf", trained, target)
    assert "no file that ends in .gguf" in refused("from-gguf", hf_llm, target)
    assert "no file that ends in .onnx" in refused("from-onnx", hf_llm / "config.json", target)
    (tmp_path / "fake.gguf").write_bytes(b"not that")
    assert "not a GGUF file" in refused("from-gguf", tmp_path / "fake.gguf", target)
    (tmp_path / "fake.onnx").write_bytes(b"")
    for prefix in ((), ("--prefix", "backbone.")):
        assert "fake.onnx" in refused("from-onnx", tmp_path / "fake.onnx", target, *prefix)
    assert "no such part" in refused("to-hf", hf_llm, target, "--part", "encoder")
    assert not target.exists()


def test_what_transformers_cannot_express(refused: Any, saved: Path, tmp_path: Path) -> None:
    line = refused("to-hf", saved, tmp_path / "new")
    assert "this VLMConfig cannot be written in Hugging Face format" in line
    assert "adapter" in line
    assert not (tmp_path / "new").exists()


def test_damaged_sources(refused: Any, hf_llm: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new"
    shutil.copytree(hf_llm, source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{weights}: {weights.stat().st_size} bytes long" in refused("from-hf", source, target)
    weights.rename(source / "pytorch_model.bin")
    assert "a pickle" in refused("from-hf", source, target)
    (source / "config.json").write_text('{"model_type": "mamba"}')
    assert "'mamba'" in refused("from-hf", source, target)
    assert not target.exists()


@pytest.mark.parametrize("direction", ["from-hf", "to-hf"])
def test_a_target_that_holds_something(refused: Any, hf_llm: Path, tmp_path: Path, direction: str) -> None:
    (tmp_path / "mine").write_text("precious")
    assert "is there already" in refused(direction, hf_llm, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
