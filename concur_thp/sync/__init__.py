"""Locks built from the atomics of `arch`, and lockdep over all of them."""
