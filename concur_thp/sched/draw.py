"""The scheduler's own random numbers, apart from every CPU's."""

from concur_thp.arch.builtins import lsr, wrap_mul
from concur_thp.arch.linker import inline
from concur_thp.sched.state import sched


@inline
def seed_draws(seed: int):
    """Start anew; neighbouring seeds have nothing in common (splitmix64's finish)."""
    x = wrap_mul(seed + 1, 0x9E3779B97F4A7C15 - (1 << 64))
    x = wrap_mul(x ^ lsr(x, 30), 0xBF58476D1CE4E5B9 - (1 << 64))
    x = wrap_mul(x ^ lsr(x, 27), 0x94D049BB133111EB - (1 << 64))
    sched.rng = (x ^ lsr(x, 31)) | 1


@inline
def draw():
    """63 random bits."""
    x = sched.rng
    x = x ^ (x << 13)
    x = x ^ lsr(x, 7)
    x = x ^ (x << 17)
    sched.rng = x
    return x & 0x7FFFFFFFFFFFFFFF


@inline
def draw_below(limit: int):
    """A random number in 0 .. limit-1, limit below 2**31."""
    return ((draw() >> 31) * limit) >> 32
