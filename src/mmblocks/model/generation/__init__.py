"""Text generation: a key-value cache, prompts without padding, then one token per step."""
