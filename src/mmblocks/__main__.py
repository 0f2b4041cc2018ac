"""`python -m mmblocks`, for where the script `mmblocks` is not on the path; under torchrun, `torchrun -m mmblocks train`."""

import sys

from mmblocks.cli import main

if __name__ == "__main__":
    sys.exit(main())
