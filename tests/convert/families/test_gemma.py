import pytest
from published import GEMMA, GEMMA2

from vlm_jax.convert.families.gemma import read_config
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import SelfAttentionBlock


def test_the_first_release_meant_another_gelu_than_it_wrote():
    assert read_config(GEMMA).activation == "gelu_tanh"
    assert read_config({**GEMMA2, "hidden_activation": "gelu"}).activation == "gelu"


def test_gemma_2_alternates_and_may_leave_out_its_caps():
    config = read_config(GEMMA2)
    assert config.pattern == (SelfAttentionBlock(4096), SelfAttentionBlock())
    assert (config.attention_softcap, config.logit_softcap, config.query_scale) == (50.0, 30.0, 0.0)
    assert config.tied_embeddings
    assert config.embedding_scale == 3584**0.5
    other = read_config(
        {
            **GEMMA2,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 144,
            "layer_types": ["full_attention"] * 42,
        }
    )
    assert (other.attention_softcap, other.logit_softcap, other.query_scale) == (0.0, 0.0, 1 / 12)
    assert other.pattern == (SelfAttentionBlock(),)


def test_what_only_the_language_model_of_paligemma_says_is_enough():
    text = {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "vocab_size": 257216,
    }
    config = read_config(text)
    assert (config.head_size, config.norm_epsilon, config.activation) == (256, 1e-6, "gelu_tanh")


def test_an_encoder_that_sees_both_ways_is_refused():
    with pytest.raises(UserError, match="use_bidirectional_attention"):
        read_config({**GEMMA, "use_bidirectional_attention": True})
