"""Schedules, and the run of the day that each of their triggers plans and submits."""
