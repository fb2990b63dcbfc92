"""`concur-thp` and `python -m concur_thp`. Nothing else is imported before it is known what to say when that fails."""

import sys


def main() -> None:
    """The console script."""
    try:
        from concur_thp.cli import main as command_line
    except KeyboardInterrupt:
        print("\nconcur-thp: interrupted", file=sys.stderr)
        sys.exit(4)
    except (ImportError, OSError) as error:  # OSError: LLVM's library cannot be mapped.
        said = " ".join(str(error.__cause__ or error).split())
        print(f"concur-thp: cannot be started: {said}; install it again (`pip install -e .`) or raise the limit of memory",
              file=sys.stderr)
        sys.exit(3)
    command_line()


if __name__ == "__main__":
    main()
