"""From a conversation to a sample and from samples to a packed batch."""
