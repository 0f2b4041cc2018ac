"""What a run writes down: progress, metrics, profile, evaluation."""
