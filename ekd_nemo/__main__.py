"""`python -m ekd_nemo`: the command line, for callers that name an interpreter rather than a script."""

import sys

from ekd_nemo.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
