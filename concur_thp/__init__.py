"""A multiprocess emulator of Linux's Transparent Hugepages: real processes, real atomics, real races."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concur_thp.machine import Machine

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from concur_thp import Machine`, without every `import concur_thp` paying for the whole kernel."""
    if name == "Machine":
        from concur_thp.machine import Machine

        return Machine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Machine", "__version__"]
