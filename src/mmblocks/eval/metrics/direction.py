"""Which way a number is better."""


def is_lower_better(name: str) -> bool:
    """Whether less of a number is better: of a loss or a perplexity. Of all others more is."""
    return name.endswith(("loss", "perplexity"))
