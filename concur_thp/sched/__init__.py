"""Controlled runs: exactly one CPU moves at a time, and a strategy says which."""
