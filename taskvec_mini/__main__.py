"""The command line for people with models: `python -m taskvec_mini --help` shows what it can do."""

import sys

from taskvec_mini.command import main

if __name__ == "__main__":
    sys.exit(main())
