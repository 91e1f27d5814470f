"""NVIDIA's tables: archs, GPUs, drivers, and the words for them in version labels."""
