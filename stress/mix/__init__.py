"""Mixes: random programs with weights, run natively, every word checked by the data oracle."""
