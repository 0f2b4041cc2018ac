"""Which way a metric is better."""

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


def is_lower_better(metric: str) -> bool:
    """Whether less of a metric is better; of all others more is."""
    return metric in LOWER_IS_BETTER
