"""``python -m vlm.cli COMMAND ...``, for ``torchrun -m``."""

import sys

from vlm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
