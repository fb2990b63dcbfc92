"""Speed: the emulator's operations beside the running kernel's and beside multiprocess locks."""
