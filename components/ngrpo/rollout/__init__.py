"""Rollout engines: generate responses, with or without mixing."""
