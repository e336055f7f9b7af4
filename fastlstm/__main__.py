"""``python -m fastlstm``: the command line, where no script of that name is on the path."""

import sys

from fastlstm.cli import main

if __name__ == "__main__":
    sys.exit(main())
