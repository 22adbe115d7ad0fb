"""`python -m dfvt` is the console script `dfvt`."""

import sys

from dfvt.cli import main

if __name__ == "__main__":
    sys.exit(main())
