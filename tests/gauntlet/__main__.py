"""`python -m tests.gauntlet`: see `tests.gauntlet.campaign`."""

import sys

from tests.gauntlet.campaign import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
