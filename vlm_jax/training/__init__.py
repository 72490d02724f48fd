"""Training: recipe (the main), state, step (pure), loop (short), hooks."""
