"""`rfork serve` knows every argument of SGLang, each with as many values as SGLang's own parser takes.

The parser is built by sglang.srt.server_args of the installed package; sglang_oracle.py makes it importable on a CPU. Each
argument is given to the program with a value or without, and what it says is compared with what argparse knows.

ctest: timeout=600
"""

import argparse
import concurrent.futures
import subprocess
import unittest

import rfork_program

try:
    import sglang_oracle  # noqa: F401
    from sglang.srt.server_args import ServerArgs
except ImportError as error:
    rfork_program.skip(f"SGLang cannot be loaded: {error}")


def serve(*arguments: str) -> str:
    """What `rfork serve` says; nothing can be served, so that it ends at once."""
    done = subprocess.run([rfork_program.RFORK, "serve", "--model-path", "/none", "--port", "0", *arguments],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)  # fmt: skip
    return done.stderr


def values_taken(name: str) -> str:
    """As argparse's nargs: "0", "1", "?" or "*"."""
    if "takes no value" in serve(f"{name}=1"):
        return "0"
    if "needs a value" in serve(name):
        return "1"
    # A word too many is an operand, and there are none; what is refused has been taken.
    return "?" if "one argument too many" in serve(name, "1", "2") else "*"


class Arguments(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        parser = argparse.ArgumentParser()
        ServerArgs.add_cli_args(parser)
        cls.actions = {
            name: action
            for action in parser._actions
            for name in action.option_strings
            if name.startswith("--") and name != "--help"
        }

    def test_each_is_known_with_its_values(self) -> None:
        self.assertGreater(len(self.actions), 300)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            taken = dict(zip(self.actions, pool.map(values_taken, self.actions), strict=True))
        for name, action in self.actions.items():
            with self.subTest(name):
                self.assertNotIn("no such option", serve(name))
                nargs = {None: "1", 0: "0", "?": "?", "+": "*", "*": "*"}[action.nargs]
                self.assertEqual(taken[name], nargs)

    def test_the_beginnings_of_the_document_mean_the_same(self) -> None:
        for short, name in (("--tp", "--tp-size"), ("--mem-frac", "--mem-fraction-static")):
            self.assertEqual([long for long in self.actions if long.startswith(short)], [name])
            self.assertNotIn("beginning", serve(short, "1"))


if __name__ == "__main__":
    unittest.main()
