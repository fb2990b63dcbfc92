"""Reads everything, changes nothing: invariants, audit, data oracle, dumps."""
