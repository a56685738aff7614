"""``python -m medmamba.compat SCRIPT ARGS...``: a script whose Mamba imports are answered by medmamba."""

import argparse
import atexit
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from medmamba.compat.install import install
from medmamba.compat.usage import report
from medmamba.errors import InputError, MedmambaError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m medmamba.compat", description=__doc__)
    parser.add_argument("--replace", action="store_true", help="use medmamba's operators even where mamba_ssm is")
    parser.add_argument("--cuda-as-cpu", action="store_true", help="let 'cuda' in the script mean the CPU")
    parser.add_argument("--report", action="store_true", help="at the end, list what was called and on which backend")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file, or with -m a module")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="arguments of the script")
    return parser


def main(words: Sequence[str]) -> None:
    """Run a script as ``python SCRIPT ARGS...`` would, with the answers installed."""
    given = _parser().parse_args(words)
    if not given.module and not Path(given.script).is_file():
        raise InputError(f"{given.script} is no file: name the Python script to run.")
    sys.path[0] = "" if given.module else str(Path(given.script).resolve().parent)
    install(given.replace)
    if given.module and find_spec(given.script) is None:
        raise InputError(f"there is no module {given.script}: name one that can be imported here.")
    if given.cuda_as_cpu:
        from medmamba.compat.cuda_as_cpu import take_cuda_as_cpu

        take_cuda_as_cpu()
    if given.report:
        atexit.register(lambda: print(report(), file=sys.stderr))
    sys.argv = [given.script, *given.arguments]
    if given.module:
        runpy.run_module(given.script, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(given.script, run_name="__main__")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MedmambaError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
