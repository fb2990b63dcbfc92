"""Each CPU's random numbers: seeded, so that what a CPU draws depends on nothing but its seed."""

from concur_thp.arch.builtins import lsr
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline


@inline
def random_u63(cpu: Cpu):
    """The next random number, 63 bits (xorshift64; the state is never 0)."""
    x = cpu.rng
    x = x ^ (x << 13)
    x = x ^ lsr(x, 7)
    x = x ^ (x << 17)
    cpu.rng = x
    return x & 0x7FFFFFFFFFFFFFFF


@inline
def random_below(cpu: Cpu, limit: int):
    """A random number in 0 .. limit-1, limit below 2**31."""
    return ((random_u63(cpu) >> 31) * limit) >> 32
