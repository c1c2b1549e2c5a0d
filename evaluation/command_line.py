"""What commands have in common that begin ``python -m evaluation.<name> runs/my_run``."""

import argparse


def command_line(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return the command line of a module, whose first word is the folder of a run."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of a finished run")
    return parser
