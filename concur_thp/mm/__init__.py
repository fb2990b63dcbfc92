"""The emulated kernel, one module per Linux file (v4.20)."""
