"""`python -m pixio_lightning` is `pixio`."""

import sys

from pixio_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
