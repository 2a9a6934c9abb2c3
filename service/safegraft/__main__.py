"""`python -m safegraft` is the command line."""

import sys

from safegraft.cli import main

if __name__ == "__main__":
    sys.exit(main())
