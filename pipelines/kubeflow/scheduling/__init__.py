"""Schedules, and the runs of the day that they plan and submit."""
