"""Real sentences set into pictures, to be read."""
