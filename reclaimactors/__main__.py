"""The `reclaimactors` command, and `python -m reclaimactors`.

The command line is imported here and not above, so that Ctrl-C meanwhile is Ctrl-C too.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    try:
        from reclaimactors.cli import main as run  # noqa: PLC0415 - see above
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
