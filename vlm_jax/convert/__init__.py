"""Pre-trained weights in and out: Hugging Face safetensors both ways, GGUF and ONNX in."""

from vlm_jax.convert.hf import load_hf, save_hf

__all__ = ["load_hf", "save_hf"]
