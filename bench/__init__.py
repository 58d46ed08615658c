"""Measurements, always beside what a user would otherwise do, in the same run."""
