"""Configs of image encoders in and out; numbers are compared with transformers' in tests/parity."""

import dataclasses

import pytest

from vlm_jax.convert.families import clip, convnext, dinov2, siglip
from vlm_jax.convert.hf import find_writer
from vlm_jax.errors import UserError
from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.presets import dinov2_small, vlm_2b
from vlm_jax.models.vit import ConvStem, PatchStem, ViTConfig

CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
DINOV2_S = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def test_published_configs_are_what_they_are_known_to_be():
    vit = clip.read_config(CLIP_L)
    assert (vit.grid, vit.activation, vit.norm_epsilon, vit.extra_tokens) == ((24, 24), "quick_gelu", 1e-5, 1)
    so400m = siglip.read_config(SIGLIP_SO400M)
    assert (so400m.grid, so400m.stem) == ((27, 27), PatchStem(14, truncate=True))
    assert siglip.read_config({**SIGLIP_SO400M, "image_size": 224}) == dataclasses.replace(
        vlm_2b().encoder, remat="none", position_resampling="bicubic"
    )
    giant = dinov2.read_config({**DINOV2_S, "hidden_size": 1536, "num_attention_heads": 24, "use_swiglu_ffn": True})
    assert (giant.mlp_width, giant.activation) == (4096, "silu")
    assert convnext.read_config({"model_type": "convnext"}) == ConvNeXtConfig()


def test_the_preset_is_the_published_dinov2_at_another_size():
    published = dinov2.read_config(DINOV2_S)
    assert dinov2_small() == dataclasses.replace(published, image_size=(224, 224), position_grid=(37, 37))
    assert dinov2.write_config(dinov2_small())["image_size"] == 518


@pytest.mark.parametrize("family", [clip, siglip])
def test_the_encoder_of_a_model_with_text_is_its_vision_config(family):
    vision = CLIP_L if family is clip else SIGLIP_SO400M
    whole = {"model_type": family.MODEL_TYPES[1], "vision_config": vision, "hidden_size": 3, "image_size": 7}
    assert family.read_config(whole) == family.read_config({**vision, "model_type": family.MODEL_TYPES[0]})


def test_every_config_is_written_by_its_own_family():
    for family, plain in ((clip, CLIP_L), (siglip, SIGLIP_SO400M), (dinov2, DINOV2_S), (convnext, {})):
        config = family.read_config({"model_type": family.MODEL_TYPES[0], **plain})
        found, written = find_writer(config)
        assert found is family
        assert family.read_config(written) == config
        assert {name: written[name] for name in plain} == plain
    registers = dataclasses.replace(dinov2_small(), registers=4, position_resampling="bicubic_antialias")
    assert find_writer(registers)[1]["architectures"] == ["Dinov2WithRegistersModel"]
    assert find_writer(ViTConfig())[1]["architectures"] == ["SiglipVisionModel"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": [14, 7]}, "patch_size is 14 x 7"),
        ({"patch_size": "14"}, "patch_size is '14'"),
        ({"image_size": [1, 2, 3]}, "one size in pixels"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
    ],
)
@pytest.mark.parametrize("family", [clip, siglip, dinov2, convnext])
def test_what_no_encoder_here_can_do_is_refused(family, change, said):
    with pytest.raises(UserError, match=said):
        family.read_config({"model_type": family.MODEL_TYPES[0], **change})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ViTConfig(stem=ConvStem()), "the stem is a ConvStem; an encoder that is to be exported needs a PatchStem"),
        (ViTConfig((224, 448)), "takes square pictures, but positions are learned for 14 x 28"),
        (ViTConfig(registers=2), "SigLIP has no registers"),
        (ViTConfig(layer_scale=True, gated_mlp=True), "no layer_scale and no gated_mlp"),
        (ViTConfig(stem=PatchStem(bias=False)), "no stem without a bias"),
        (ViTConfig(position_grid=(7, 7)), "resamples positions by bicubic, and this model by bicubic_antialias"),
        (ViTConfig(class_token=True), "no architecture has these parts"),
        (ViTConfig(class_token=True, stem_norm=True), "CLIP norms the pooled class token only"),
        (dataclasses.replace(dinov2_small(), mlp_width=400), "none makes mlp_width 400 of width 384"),
        (dataclasses.replace(dinov2_small(), gated_mlp=True), "no gated MLP with gelu"),
        (dataclasses.replace(dinov2_small(), registers=1), "by bicubic_antialias, and this model by bicubic"),
    ],
)
def test_what_no_architecture_outside_expresses_is_refused(config, said):
    with pytest.raises(UserError, match=said):
        find_writer(config)
