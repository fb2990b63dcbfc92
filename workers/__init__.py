"""The OS processes: CPUs running programs, khugepaged, and the launcher that starts, watches and ends them."""
