"""Ablation studies: the same training with one thing changed, over paired seeds, and what each choice costs."""
