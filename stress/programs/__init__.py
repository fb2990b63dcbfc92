"""Controlled exploration of programs that are Python functions: schedules, verdicts, shrinking, tokens and charts."""
