"""Runs the cases of a file as GoogleTest would tell of them, so that tools/test counts them: run.py FILE."""

import importlib.util
import sys
import time
import unittest


class Told(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.begin = time.monotonic()

    def tell(self, word, test, detail=""):
        if detail:
            print(f"{test.id()}: Failure\n{detail}")
        print(f"[{word}] {test.id()} ({(time.monotonic() - self.begin) * 1000:.0f} ms)", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.tell("       OK ", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"SKIPPED: {reason}")
        self.tell("  SKIPPED ", test)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.tell("  FAILED  ", test, self.failures[-1][1])

    def addError(self, test, error):
        super().addError(test, error)
        self.begin = getattr(self, "begin", time.monotonic())
        self.tell("  FAILED  ", test, self.errors[-1][1])


spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
suite = unittest.defaultTestLoader.loadTestsFromModule(module)
result = Told()
suite.run(result)
sys.exit(0 if result.wasSuccessful() and result.testsRun > 0 else 1)
