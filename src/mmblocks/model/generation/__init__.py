"""How answers are written: keys and values in slots, prompts read without padding, then one token a step."""
