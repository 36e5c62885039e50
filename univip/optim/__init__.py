"""Optimizers, their parameter groups, and the schedules in data steps."""
