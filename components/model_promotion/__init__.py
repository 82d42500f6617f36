"""Component `model_promotion`."""
