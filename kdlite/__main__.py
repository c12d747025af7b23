"""`python -m kdlite` is the command `kdlite`."""

import sys

from kdlite.cli import main

if __name__ == "__main__":
    sys.exit(main())
