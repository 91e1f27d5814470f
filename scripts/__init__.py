"""wheelsmith: build, prove and publish vLLM CUDA wheels.

One module per stage, in the order data flows through them (see docs/architecture.md):
recipe -> fetch -> patch -> toolchain -> compile -> package -> prove -> wheel.
"""
