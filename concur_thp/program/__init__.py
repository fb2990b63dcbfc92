"""Step programs: what one CPU does in a race, as data that kernel code runs."""
