"""`python -m vi_lab COMMAND ...` is `vi-lab COMMAND ...`."""

import sys

from vi_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
