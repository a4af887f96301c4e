"""python3 -m ringfold_torch SCRIPT [ARGUMENT...]: runs a script in which the backend "ringfold" is known."""

import runpy
import sys

import ringfold_torch  # noqa: F401, registers it

if len(sys.argv) < 2:
    sys.exit(__doc__)
del sys.argv[0]
sys.path[0] = sys.argv[0].rpartition("/")[0] or "."
runpy.run_path(sys.argv[0], run_name="__main__")
