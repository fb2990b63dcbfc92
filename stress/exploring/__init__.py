"""Controlled exploration of scenarios: many schedules, one CPU at a time, every end checked."""
