"""Drafts a preset for somebody's own model, problems and rewards."""
