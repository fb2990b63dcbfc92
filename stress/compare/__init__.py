"""The same programs on the running Linux kernel and in the emulator, and what a user can see of both (semantics 6)."""
