"""`python -m jbp`: the same program as `jbp`."""

import sys

from jbp.cli import main

if __name__ == "__main__":
    sys.exit(main())
