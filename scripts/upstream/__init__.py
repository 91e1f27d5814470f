"""What vLLM's own files say: their tree, their pins, and whether a recipe agrees."""
