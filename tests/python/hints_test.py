"""The type hints: true of the module, and enough for a checker to accept the example and refuse a wrong call."""

import ast
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from ringfold import _core

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


class Stub(unittest.TestCase):
    """The stub names what the module has, no more and no less, with the arguments that it takes."""

    def test_every_name_and_argument_is_hinted_as_it_is(self):
        with open(os.path.join(PACKAGES, "ringfold", "_core.pyi"), encoding="utf-8") as file:
            stub = ast.parse(file.read())
        checked = self.compare(stub.body, _core, lambda n: n in _core.__dict__)
        for node in stub.body:
            if isinstance(node, ast.ClassDef):
                kind = getattr(_core, node.name)
                checked += self.compare(node.body, kind, lambda n, kind=kind: n in vars(kind))
                hinted = {n.name for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}
                self.assertEqual(hinted, {n for n in vars(kind) if not n.startswith("_")}, node.name)
        self.assertGreater(checked, 50)
        public = {n for n in vars(_core) if not n.startswith("_")}
        self.assertLessEqual(public, {getattr(n, "name", None) or n.target.id for n in stub.body if hasattr(n, "name") or isinstance(n, ast.AnnAssign)})

    def compare(self, nodes, owner, has):
        functions = [n for n in nodes if isinstance(n, ast.FunctionDef) and not n.name.startswith("__")]
        for node in functions:
            self.assertTrue(has(node.name), node.name)
            if any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list):
                continue
            hinted = [a.arg for a in node.args.args + node.args.kwonlyargs if a.arg != "self"]
            # pybind11 writes the signature into the first line of the documentation.
            signature = getattr(owner, node.name).__doc__.splitlines()[0]
            real = [n for n in re.findall(r"[(,] ?(\w+): ", re.sub(r"\[[^\]]*\]", "", signature)) if n != "self"]
            self.assertEqual(hinted, real, node.name)
        return len(functions)


if __name__ == "__main__":
    unittest.main(verbosity=2)
