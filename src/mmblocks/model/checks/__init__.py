"""What is wrong with a composition, found on the meta device before a weight is read."""
