"""`python -m jaxdiff.runs`."""

import sys

from jaxdiff.runs.listing import main

sys.exit(main())
