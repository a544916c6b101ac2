"""`python -m jaxdiff`: the command `jaxdiff`."""

import sys

from jaxdiff.commands import main

if __name__ == "__main__":  # worker processes import this file once more
    sys.exit(main())
