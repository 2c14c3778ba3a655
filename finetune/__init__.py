"""Package on which `fine_tuning_llm.py` and `inference.py` stand; it never imports a script."""

import sys

# This file and both scripts are read by Pythons that are too old for the rest; from 3.6 they can say so.
if sys.version_info < (3, 11):  # noqa: UP036
    seen = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write("✗ 需要 Python 3.11 以上，這是 {} (Python 3.11 or newer is needed)\n".format(seen))  # noqa: UP032
    sys.exit(2)
