"""Compiling: configured once, admitted by cores and memory, resumed exactly, cached."""
