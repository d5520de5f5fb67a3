"""``vlm study run`` in a process of its own: python run_alone.py STUDY [ARGUMENTS]."""

import sys
from types import SimpleNamespace

from vlm.cli.study.run import main
from vlm.common.logging import setup_logging

if __name__ == "__main__":
    setup_logging()
    given = {"only": [], "options": [], "workers": 1, "no_retry": False, "submit": False}
    sys.exit(main(SimpleNamespace(study=sys.argv[1], **given)))
