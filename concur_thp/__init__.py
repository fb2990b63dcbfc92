"""A multiprocess emulator of Linux's Transparent Hugepages: real processes, real atomics, real races."""

__version__ = "0.1.0"
