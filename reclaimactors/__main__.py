"""`python -m reclaimactors` is the `reclaimactors` command."""

from reclaimactors.cli import main

if __name__ == "__main__":
    main()
