"""Rollout engines: what generates responses, with or without mixing."""
