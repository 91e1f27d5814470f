"""Build environments and CUDA toolkits, made from lock files and verified against torch."""
