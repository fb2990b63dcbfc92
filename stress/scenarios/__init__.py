"""Scenarios: the races of semantics' Appendix B as programs, each with every outcome that it may have."""
