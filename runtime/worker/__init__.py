"""A RunPod serverless worker around `vllm serve`: settings, engine, routes, streaming. See docs/deploy-runpod.md."""
