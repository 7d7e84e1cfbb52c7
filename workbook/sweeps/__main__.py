"""`python -m workbook.sweeps`."""

import sys

from workbook.sweeps.command import main

sys.exit(main(sys.argv[1:]))
