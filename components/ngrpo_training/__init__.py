"""Component `ngrpo_training`."""
