import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from published import VICUNA
from tiny_parts import DECODER, random_params

from vlm_jax.checkpoints.parts import load_encoder
from vlm_jax.checkpoints.reference import load_part
from vlm_jax.cli import run
from vlm_jax.convert import load_hf, run_hf_inputs, save_hf
from vlm_jax.convert.families import find_family
from vlm_jax.errors import UserError
from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.adapters import MLPAdapterConfig, QFormerAdapterConfig
from vlm_jax.models.presets import vlm_mu
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.vit import PatchStem, ViTConfig
from vlm_jax.models.vlm import PromptLayout, VLMConfig
from vlm_jax.parallel import MeshConfig, abstract_params, build_layout

ENCODER = ViTConfig(
    (28, 28),
    PatchStem(14),
    width=20,
    layers=2,
    heads=4,
    mlp_width=32,
    activation="gelu",
    position_resampling="bicubic",
    class_token=True,
    final_norm="both",
    keep_class_token=True,
)
QFORMER = QFormerConfig(width=12, layers=3, heads=3, mlp_width=20, features_width=20)
ASKED = dataclasses.replace(QFORMER, text=True, text_vocabulary=17, text_length=9)


def whole(adapter, encoder=ENCODER):
    return VLMConfig(DECODER, encoder, adapter, layout=PromptLayout(5))


BLIP2 = whole(QFormerAdapterConfig(4, dataclasses.replace(QFORMER, features_width=0), feature_norm=False))
INSTRUCTBLIP = whole(
    QFormerAdapterConfig(4, dataclasses.replace(ASKED, features_width=0), instruction=9, feature_norm=False)
)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def edit(directory, **fields):
    file = directory / "config.json"
    plain = json.loads(file.read_text())
    file.write_text(json.dumps({**plain, **fields}))


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    """(directory, parameters) of a BLIP-2 whose decoder its config.json calls OPT."""
    directory, params = tmp_path_factory.mktemp("blip2") / "opt", random_params(BLIP2)
    save_hf(BLIP2, params, directory)
    edit(directory, text_config={"model_type": "opt", "hidden_size": 24})
    return directory, params


@pytest.mark.parametrize("config", [BLIP2, INSTRUCTBLIP, QFORMER, ASKED, ENCODER], ids=lambda c: type(c).__name__)
def test_out_and_in_again(config, tmp_path):
    params = random_params(config)
    save_hf(config, params, tmp_path / "out")
    again, loaded = load_hf(tmp_path / "out")
    encoder = again.encoder if isinstance(again, VLMConfig) else again
    if isinstance(encoder, ViTConfig):  # the image processor's, which an encoder by itself has beside it
        assert encoder.mean != (0.5,) * 3 or config is ENCODER
        encoder = dataclasses.replace(encoder, mean=ENCODER.mean, std=ENCODER.std)
        again = dataclasses.replace(again, encoder=encoder) if isinstance(again, VLMConfig) else encoder
    assert again == config
    same(loaded, params)


def test_a_decoder_that_is_not_read_is_named_with_what_can_be_taken(blip2):
    with pytest.raises(UserError, match=r"text_config is 'opt'.*--part encoder, or --part qformer") as error:
        load_hf(blip2[0])
    assert "\n" not in str(error.value)


def test_the_parts_of_such_a_model_come_in(blip2, tmp_path, capsys):
    directory, params = blip2
    for part, wanted in (("encoder", params["encoder"]), ("qformer", params["adapter"]["qformer"])):
        config, loaded = load_hf(directory, part=part)
        same(loaded, wanted)
        assert run(["convert", "from-hf", str(directory), str(tmp_path / part), "--part", part]) == 0
        found = load_part(str(tmp_path / part))
        assert found.config == config
        same(found.params, wanted)
        assert run(["convert", "to-hf", str(tmp_path / part), str(tmp_path / f"{part}-out")]) == 0
        same(load_hf(tmp_path / f"{part}-out")[1], wanted)
    assert "QFormer of" in capsys.readouterr().out
    assert config == QFORMER
    with pytest.raises(UserError, match="text_config is 'opt'"):
        load_hf(directory, part="decoder")
    with pytest.raises(UserError, match=r"parts.encoder: .* is a QFormerConfig, which has no encoder"):
        load_encoder(str(tmp_path / "qformer"), ENCODER, "float32", {}, build_layout(MeshConfig()))


def test_parts_of_other_models(tmp_path):
    config = whole(MLPAdapterConfig(), dataclasses.replace(ENCODER, final_norm="features", keep_class_token=False))
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, layer_scale=True, mlp_width=80))
    params = random_params(config)
    save_hf(config, params, tmp_path / "llava")
    found, loaded = load_hf(tmp_path / "llava", part="decoder")
    assert found == DECODER
    same(loaded, params["decoder"])
    with pytest.raises(UserError, match="a llava has no qformer that could be taken by itself; leave --part out"):
        load_hf(tmp_path / "llava", part="qformer")


def test_whole_models_are_converted(tmp_path):
    for name, config in (("blip2", BLIP2), ("instructblip", INSTRUCTBLIP)):
        params = random_params(config)
        save_hf(config, params, tmp_path / name)
        assert run(["convert", "from-hf", str(tmp_path / name), str(tmp_path / f"{name}-ours")]) == 0
        found = load_part(str(tmp_path / f"{name}-ours"))
        assert found.config.adapter == config.adapter
        same(found.params, params)


def test_another_number_of_queries_is_named_with_that_of_the_weights(tmp_path):
    save_hf(BLIP2, random_params(BLIP2), tmp_path / "out")
    edit(tmp_path / "out", num_query_tokens=7)
    with pytest.raises(UserError, match=r"query_tokens \[1, 4, 12\] for \[1, 7, 12\]"):
        load_hf(tmp_path / "out")
    edit(tmp_path / "out", num_query_tokens=4, image_token_index=None)
    with pytest.raises(UserError, match="image_token_index is None; it must be the id of a token"):
        load_hf(tmp_path / "out")


def test_what_blip2_does_not_have_is_said(tmp_path):
    mu = vlm_mu()
    trained_here = dataclasses.replace(
        mu, adapter=QFormerAdapterConfig(4, dataclasses.replace(QFORMER, features_width=0)), layout=PromptLayout(5)
    )
    with pytest.raises(UserError, match="BLIP-2 has an encoder like BLIP's"):
        save_hf(trained_here, {}, tmp_path / "out")
    normed = dataclasses.replace(BLIP2, adapter=dataclasses.replace(BLIP2.adapter, feature_norm=True))
    with pytest.raises(UserError, match="a norm of the features in the adapter"):
        save_hf(normed, {}, tmp_path / "out")
    with pytest.raises(UserError, match=r"final_norm 'both'.*is known by itself and inside BLIP-2 only"):
        save_hf(whole(MLPAdapterConfig()), {}, tmp_path / "out")
    with pytest.raises(UserError, match="features_width"):
        save_hf(dataclasses.replace(QFORMER, features_width=0), {}, tmp_path / "out")


GIVEN = {
    "query_embeds": np.zeros((2, 4, 12), np.float32),
    "encoder_hidden_states": np.zeros((2, 5, 20), np.float32),
}


@pytest.mark.parametrize(
    ("config", "inputs", "said"),
    [
        (QFORMER, {"encoder_hidden_states": GIVEN["encoder_hidden_states"]}, "query_embeds is missing"),
        (QFORMER, {"query_embeds": GIVEN["query_embeds"]}, "encoder_hidden_states is missing"),
        (QFORMER, {**GIVEN, "query_embeds": np.zeros((2, 4, 9))}, r"query_embeds is \[2, 4, 9\]; give \[2, any, 12\]"),
        (QFORMER, {**GIVEN, "attention_mask": np.ones((2, 3))}, r"attention_mask is \[2, 3\]; give \[2, 4\]"),
        (QFORMER, {**GIVEN, "input_ids": np.zeros((2, 3), int)}, "embeds no text"),
        (QFORMER, {**GIVEN, "query_length": np.int64(3)}, "no layers for it"),
        (QFORMER, {**GIVEN, "pixel_values": np.zeros(1)}, "pixel_values cannot be given"),
        (ASKED, {**GIVEN, "input_ids": np.full((2, 3), 17)}, "the Q-Former embeds 0 to 16"),
        (ASKED, {**GIVEN, "input_ids": np.zeros((2, 10), int)}, "positions 0 to 8"),
        (
            INSTRUCTBLIP,
            {"input_ids": np.full((1, 4), 5), "pixel_values": np.zeros((1, 3, 28, 28))},
            "qformer_input_ids",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(config, inputs, said):
    params = random_params(config) if isinstance(config, VLMConfig) else {}
    with pytest.raises(UserError, match=said):
        run_hf_inputs(config, params, inputs)


def millions(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(params))) / 1e6


def test_the_published_sizes():
    """Those on Vicuna have the defaults: a Q-Former of 188 M (BLIP-2, section 3.1) with its head; EVA's ViT-g."""
    hf = {
        "model_type": "instructblip",
        "text_config": VICUNA,
        "vision_config": {"model_type": "instructblip_vision_model"},
        "qformer_config": {"model_type": "instructblip_qformer", "vocab_size": 30523},
        "num_query_tokens": 32,
        "image_token_index": 32000,
    }
    config = find_family(hf).read_config(hf)
    params = boxed_params(build_model(config))
    assert (config.prompt_tokens, config.encoder.features.count) == (32, 257)
    assert 183 < millions(params["adapter"]["qformer"]) < 188
    assert 980 < millions(params["encoder"]) < 1015
    fitted = dataclasses.replace(config.adapter.qformer, features_width=1408)
    assert config.adapter.flops(config.encoder.features, config.decoder.width) > fitted.flops(32, 257)
