"""The command `gamlib`, also as `python -m gamlib`: it is the laboratory's, which needs more than the model code."""

import sys
from importlib import import_module


def main() -> None:
    """Be the command, or say in one line what it lacks."""
    try:
        command = import_module("ablation.cli").app
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: the command needs the laboratory, pip install 'gamlib[lab]'")
    command()


if __name__ == "__main__":
    main()
