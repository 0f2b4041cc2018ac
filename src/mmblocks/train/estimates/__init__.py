"""Memory that a stage needs, estimated without running it."""
