"""`python -m slm_local` is `slm`."""

from __future__ import annotations

import sys

from slm_local.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
