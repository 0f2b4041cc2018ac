"""`python -m mmblocks.cli`, for where the script `mmblocks` is not on the path."""

import sys

from mmblocks.cli import main

sys.exit(main())
