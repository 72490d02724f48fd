"""The model once more, in plain float64 NumPy, written from the papers and not from the code that it checks."""

import math

import numpy as np


def mask(batch, window=0):
    """reference_mask by the letter of the rule, pair by pair."""
    segments, branches, blocks, positions = (
        np.asarray(x) for x in (batch.segment_ids, batch.branch_ids, batch.block_ids, batch.positions)
    )
    rows, length = segments.shape
    sees = np.zeros((rows, length, length), bool)
    for b in range(rows):
        for i in range(length):
            for j in range(length):
                if segments[b, i] != segments[b, j] or segments[b, i] == 0:
                    continue
                causal = j <= i and branches[b, j] in (0, branches[b, i])
                near = window == 0 or positions[b, i] - positions[b, j] < window
                block = blocks[b, i] == blocks[b, j] != 0
                sees[b, i, j] = (causal and near) or block
    return sees


def attention(queries, keys, values, sees=None, scale=None, cap=0):
    """[S, H, K], [T, G, K], [T, G, K] -> [S, H, K]; rows that see nothing are zeros."""
    heads, groups = queries.shape[1], keys.shape[1]
    out = np.zeros_like(queries)
    for h in range(heads):
        g = h // (heads // groups)
        for i, query in enumerate(queries[:, h]):
            seen = np.arange(len(keys)) if sees is None else np.flatnonzero(sees[i])
            if not len(seen):
                continue
            scores = keys[seen, g] @ query * (scale or 1 / np.sqrt(len(query)))
            scores = soft_cap(scores, cap)
            weights = np.exp(scores - scores.max())
            out[i, h] = (weights / weights.sum()) @ values[seen, g]
    return out


def soft_cap(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def rotary(x, positions, base, scaling=None):
    """[S, H, K]: pair (k, k + K/2) as one complex number, turned by position * its frequency."""
    half = x.shape[-1] // 2
    turns = np.array([[frequency(k, 2 * half, base, scaling, positions) * at for k in range(half)] for at in positions])
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * turns)[:, None]
    return np.concatenate([turned.real, turned.imag], -1) * sharpness(scaling)


def frequency(k, size, base, scaling, positions):
    """Radians a position of pair k, one pair at a time."""
    plain = base ** (-2 * k / size)
    match type(scaling).__name__:
        case "LinearRope":
            return plain / scaling.factor
        case "DynamicRope":
            stretch = (max(positions) + 1) / scaling.original_context
            if stretch <= 1:
                return plain
            return (base * (1 + scaling.factor * (stretch - 1)) ** (size / (size - 2))) ** (-2 * k / size)
        case "Llama3Rope":
            wavelength = 2 * np.pi / plain
            if wavelength < scaling.original_context / scaling.high_frequency_factor:
                return plain
            if wavelength > scaling.original_context / scaling.low_frequency_factor:
                return plain / scaling.factor
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            smooth = (scaling.original_context / wavelength - low) / (high - low)
            return (1 - smooth) * plain / scaling.factor + smooth * plain
        case "YarnRope":
            # The index whose frequency turns n times: base^(-2 i / size) * context = 2 pi n.
            first, last = (
                np.log(scaling.original_context / (2 * np.pi * n)) / np.log(base) * size / 2
                for n in (scaling.beta_fast, scaling.beta_slow)
            )
            if scaling.truncate:
                first, last = np.floor(first), np.ceil(last)
            first, last = max(first, 0), min(last, size - 1)
            slowed = min(max((k - first) / (last - first), 0), 1)
            return plain * (1 - slowed) + plain / scaling.factor * slowed
    return plain


def sharpness(scaling):
    if type(scaling).__name__ != "YarnRope":
        return 1
    return scaling.attention_factor or 1 + np.log(scaling.factor) / 10


def rms_norm(x, scale, epsilon):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + epsilon) * scale


def layer_norm(x, p, epsilon):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def exact_gelu(x):
    return x * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


ACTIVATIONS = {
    "silu": silu,
    "gelu": exact_gelu,
    "gelu_tanh": gelu,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
}


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def decoder(p, config, x, positions, batch):
    """Embeddings [S, D] of row 0 of `batch` -> [S, D] before the first layer, after each one, and after the norm."""

    def norm(x, p):
        return rms_norm(x, p["scale"] + config.norm_offset, config.norm_epsilon)

    states = [x]
    for layer in range(config.layers):
        repeat, place = divmod(layer, len(config.pattern))
        block = take(p["layers"][f"block_{place}"], repeat)
        sees = mask(batch, config.pattern[place].window)[0]
        y = self_attention(block["attention"], config, norm(x, block["attention_norm"]), positions, sees, norm)
        x = x + (norm(y, block["attention_post_norm"]) if config.post_norms else y)
        y = gated_mlp(block["mlp"], config, norm(x, block["mlp_norm"]))
        x = x + (norm(y, block["mlp_post_norm"]) if config.post_norms else y)
        states.append(x)
    return [*states, norm(x, p["norm"])]


def self_attention(p, config, x, positions, sees, norm):
    queries, keys, values = (
        np.einsum("sd,dhk->shk", x, p[name]["kernel"]) + (p[name]["bias"] if config.attention_bias else 0)
        for name in ("query", "key", "value")
    )
    if config.query_key_norm:
        queries, keys = norm(queries, p["query_norm"]), norm(keys, p["key_norm"])
    queries, keys = (rotary(t, positions, config.rope_base, config.rope_scaling) for t in (queries, keys))
    y = attention(queries, keys, values, sees, config.query_scale, config.attention_softcap)
    return np.einsum("shk,hkd->sd", y, p["out"]["kernel"]) + (p["out"]["bias"] if config.output_bias else 0)


def gated_mlp(p, config, x):
    gate, up, down = ((p[name]["kernel"], p[name]["bias"] if config.mlp_bias else 0) for name in ("gate", "up", "down"))
    return (ACTIVATIONS[config.activation](x @ gate[0] + gate[1]) * (x @ up[0] + up[1])) @ down[0] + down[1]


def unembed(p, config, hidden):
    return soft_cap(hidden @ (p["embedding"].T if config.tied_embeddings else p["head"]), config.logit_softcap)


def conv(x, p, stride):
    """[H, W, C], 3x3, one pixel of zeros all round."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows, columns = -(-x.shape[0] // stride), -(-x.shape[1] // stride)
    out = np.zeros((rows, columns, p["kernel"].shape[-1]))
    for r in range(rows):
        for c in range(columns):
            window = padded[r * stride : r * stride + 3, c * stride : c * stride + 3]
            out[r, c] = np.einsum("abi,abio->o", window, p["kernel"]) + p["bias"]
    return out


def vit(p, config, pixels):
    """Normalised picture [H, W, 3] of the config's size -> [P, D]."""
    stem = p["stem"]
    if hasattr(config.stem, "patch"):
        size = config.stem.patch
        rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
        x = np.zeros((rows, columns, config.width))
        for r in range(rows):
            for c in range(columns):
                square = pixels[r * size : (r + 1) * size, c * size : (c + 1) * size]
                x[r, c] = np.sum(square[..., None] * stem["patch"]["kernel"], (0, 1, 2))
        x += stem["patch"].get("bias", 0)
    else:
        x = pixels
        for i, stride in enumerate(config.stem.strides):
            x = gelu(conv(x, stem[f"conv_{i}"], stride))
        x = linear(x, stem["out"])
    x = (x + p["positions"]).reshape(-1, config.width)
    if config.registers:
        x = np.concatenate([p["registers"], x])
    if config.class_token:
        x = np.concatenate([(p["class_token"] + p["class_position"])[None], x])
    if config.stem_norm:
        x = layer_norm(x, p["stem_norm"], config.norm_epsilon)
    for layer in range(config.layers):
        block = take(p["layers"], layer)
        y = layer_norm(x, block["attention_norm"], config.norm_epsilon)
        queries, keys, values = (
            np.einsum("sd,dhk->shk", y, block[name]["kernel"]) + block[name].get("bias", 0)
            for name in ("query", "key", "value")
        )
        y = np.einsum("shk,hkd->sd", attention(queries, keys, values), block["out"]["kernel"]) + block["out"]["bias"]
        x = x + y * block.get("attention_scale", 1)
        y = layer_norm(x, block["mlp_norm"], config.norm_epsilon)
        inner, activation = linear(y, block["mlp"]["up"]), ACTIVATIONS[config.activation]
        inner = activation(linear(y, block["mlp"]["gate"])) * inner if config.gated_mlp else activation(inner)
        x = x + linear(inner, block["mlp"]["down"]) * block.get("mlp_scale", 1)
    if config.final_norm == "features":
        x = layer_norm(x, p["norm"], config.norm_epsilon)
    ahead = config.class_token + config.registers
    return np.concatenate([x[: int(config.keep_class_token)], x[ahead:]])


def pixel_shuffle(grid, r):
    """[h, w, D] -> [h/r, w/r, r*r*D]."""
    height, width, _ = grid.shape
    return np.array(
        [
            [
                np.concatenate([grid[y * r + dy, x * r + dx] for dy in range(r) for dx in range(r)])
                for x in range(width // r)
            ]
            for y in range(height // r)
        ]
    )


def mlp_adapter(p, config, features, grid):
    """[P, D] -> [N, W]."""
    x = pixel_shuffle(features.reshape(*grid, -1), config.pixel_shuffle)
    x = x.reshape(-1, x.shape[-1])
    for i in range(config.layers):
        x = linear(x if i == 0 else ACTIVATIONS[config.activation](x), p[f"layer_{i}"])
    return x


def vlm(p, config, batch):
    """Logits [S, V] of row 0 of a batch."""
    x = p["decoder"]["embedding"][np.asarray(batch.tokens)[0]] * config.decoder.embedding_scale
    if batch.images is not None:
        e = config.encoder
        visual = [
            mlp_adapter(p["adapter"], config.adapter, vit(p["encoder"], e, (im / 255 - e.mean) / e.std), e.grid)
            for im in np.asarray(batch.images, np.float64)[0]
        ]
        index = np.asarray(batch.visual_index)[0]
        x[index >= 0] = np.concatenate(visual)[index[index >= 0]]
    hidden = decoder(p["decoder"], config.decoder, x, np.asarray(batch.positions)[0], batch)[-1]
    return unembed(p["decoder"], config.decoder, hidden)


def take(tree, index):
    """Layer `index` of scanned parameters."""
    return {k: take(v, index) if isinstance(v, dict) else v[index] for k, v in tree.items()}
