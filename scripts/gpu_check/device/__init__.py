"""Checks that run on the GPU, in a Python that has torch; they import nothing of this project outside this folder."""
