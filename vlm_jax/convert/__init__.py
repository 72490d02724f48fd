"""Pre-trained weights in and out: Hugging Face safetensors both ways, GGUF and ONNX in."""

from vlm_jax.convert.hf import load_hf, save_hf
from vlm_jax.convert.run import run_hf_inputs

__all__ = ["load_hf", "run_hf_inputs", "save_hf"]
