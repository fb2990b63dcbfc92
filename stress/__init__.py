"""What the CPUs are given to do: drawn mixes, recordings of real programs, scenarios and campaigns."""
