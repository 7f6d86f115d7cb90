"""`python -m ddep_hub` is `ddep-hub`; `accelerate launch -m ddep_hub` runs it in each process."""

import sys

from ddep_hub.cli import main


if __name__ == "__main__":
    sys.exit(main())
