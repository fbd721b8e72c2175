"""`python -m pixio_lightning`: the command line, where no `pixio` is on the path."""

from __future__ import annotations

import sys

from pixio_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
