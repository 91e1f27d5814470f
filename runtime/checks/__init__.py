"""Scripts that run inside the image, given to its Python on stdin: standard library and what is installed there."""
