"""The type hints: true of the module, and enough for a checker to accept the example and refuse a wrong call."""

import os
import shutil
import subprocess
import tempfile
import unittest

PACKAGES = os.environ["PYTHONPATH"].split(os.pathsep)[0]
EXAMPLES = os.environ["RINGFOLD_EXAMPLES"]


@unittest.skipUnless(shutil.which("mypy"), "no mypy here (Debian: mypy)")
class Hints(unittest.TestCase):
    def check(self, text):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "program.py")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            # MYPYPATH, since the package is not installed.
            return subprocess.run(
                ["mypy", "--strict", "--cache-dir", os.path.join(folder, "cache"), path],
                capture_output=True,
                text=True,
                timeout=120,
                env={**os.environ, "MYPYPATH": PACKAGES},
            )

    def test_the_example_is_accepted(self):
        with open(os.path.join(EXAMPLES, "averaging.py"), encoding="utf-8") as file:
            result = self.check(file.read())
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_wrong_calls_are_refused(self):
        result = self.check(
            "import numpy as np, ringfold\ncomm = ringfold.init()\nx = np.ones(3)\n"
            "comm.all_reduce(x, op='median')\ncomm.broadcast(x)\ncomm.all_reduce(x, async_op=True).shape\n"
        )
        for line in (4, 5, 6):
            self.assertIn(f"program.py:{line}: error", result.stdout)
        self.assertNotIn("program.py:3: error", result.stdout)

    def test_every_name_of_the_module_is_hinted_as_it_is(self):
        result = subprocess.run(
            ["/usr/bin/python3", "-m", "mypy.stubtest", "ringfold", "--ignore-positional-only"],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "MYPYPATH": PACKAGES},
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
