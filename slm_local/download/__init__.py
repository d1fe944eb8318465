"""Fetches models from the Hub and knows which are here: resumed, locked, verified. What leads out is in `fetch`.

Importing it, or any module of it, loads neither httpx nor huggingface_hub: `slm ls` reads what is recorded here.
"""
