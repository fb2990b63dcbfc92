"""Recordings of real programs: `perf script` text in, one program per task out."""
