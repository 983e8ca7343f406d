"""Take torch out of a lock file: it is installed first and by itself, so that a CPU build can be chosen.

sentence-transformers goes, too: the package that carries MiniLM's weights asks for it, and only its files are read.
"""

import re
import sys
from pathlib import Path

HEAD = "# The locked main environment (Python 3.11) but for torch. Made by `make lock`; do not edit.\n"
file = Path(sys.argv[1])
blocks = re.split(r"\n(?=\S)", file.read_text(encoding="utf-8"))
kept = [block for block in blocks if not block.startswith(("torch==", "sentence-transformers==", "#"))]
file.write_text(HEAD + "\n".join(kept).rstrip() + "\n", encoding="utf-8")
