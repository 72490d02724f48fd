import dataclasses
import math

import jax
import pytest

from vlm_jax.models.abstract import boxed_params, build_model
from vlm_jax.models.decoder import DecoderConfig, SelfAttentionBlock
from vlm_jax.models.flops import decoder_flops
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.parallel import abstract_params

SIZES = DecoderConfig(50, width=20, layers=6, heads=6, key_value_heads=2, head_size=6, mlp_width=28)


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_of_a_product_counts_twice(tied):
    config = dataclasses.replace(SIZES, tied_embeddings=tied, attention_bias=True, query_key_norm=True, post_norms=True)
    params = abstract_params(boxed_params(build_model(config)))
    kernels = [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    head = math.prod(params["embedding"].shape)
    assert decoder_flops(VLMConfig(config), 0) == 2 * (sum(kernels) + head)


def test_a_window_bounds_what_attention_costs():
    def attention(pattern, length):
        config = VLMConfig(dataclasses.replace(SIZES, pattern=pattern))
        return decoder_flops(config, length) - decoder_flops(config, 0)

    near, far = SelfAttentionBlock(window=10), SelfAttentionBlock()
    assert attention((far,), 40) == 4 * 6 * 6 * 6 * 40
    assert attention((near,), 40) == attention((far,), 10)
    assert attention((near,), 4) == attention((far,), 4)
    assert attention((near, far), 40) == (attention((near,), 40) + attention((far,), 40)) / 2
