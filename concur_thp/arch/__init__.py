"""What hardware gives: memory, atomics, interrupts, TLBs, and the translator that turns kernel functions native."""
