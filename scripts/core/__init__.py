"""The ground: errors, console, cache, files, processes and the machine; nothing here knows CUDA or vLLM."""
