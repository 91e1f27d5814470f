"""A wheel cut down to some archs, without compiling."""
