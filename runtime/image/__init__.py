"""What the image runs before vLLM or the worker: entry point, GPU check, health. Standard library only."""
