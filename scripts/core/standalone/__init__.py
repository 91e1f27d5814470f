"""Programs that run by path with `python -S -E`: they import the standard library only."""
