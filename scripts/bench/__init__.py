"""Ours against upstream's own build, measured side by side."""
