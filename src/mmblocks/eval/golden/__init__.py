"""Golden cases: made-up inputs of the original scorers, and what those gave."""
