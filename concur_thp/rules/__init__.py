"""The locking rules as data: what each says, where it is enforced, and how the real code looks with it broken."""
