"""Programs that run by path inside build trees: they import the standard library only."""
