"""Engines that run elsewhere, behind an OpenAI-compatible address: llama-server, vLLM, slm serve, and any other."""
