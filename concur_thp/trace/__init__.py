"""Event rings, read: the merged story of all CPUs."""
