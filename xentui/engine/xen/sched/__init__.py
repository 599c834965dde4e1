"""Scheduling policies, one module each."""
