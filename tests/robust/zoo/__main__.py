"""Write all of the zoo: python -m tests.robust.zoo DIR"""

import sys
from pathlib import Path

from . import BEASTS, write

for name, beast in BEASTS.items():
    write(name, Path(sys.argv[1]) / name)
    print(f"{name:<28} {', '.join(beast.loaders):<16} {beast.why}")
