"""`python -m kvshift`."""

import sys

from kvshift.cli import main

if __name__ == "__main__":
    sys.exit(main())
