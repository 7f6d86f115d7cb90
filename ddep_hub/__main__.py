"""`python -m ddep_hub`, which `accelerate launch -m ddep_hub` runs on each process, is `ddep-hub`."""

import sys

from ddep_hub.cli import main


if __name__ == "__main__":
    sys.exit(main())
