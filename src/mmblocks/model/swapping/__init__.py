"""Replace a component of a trained model and keep the others."""
