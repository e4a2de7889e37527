"""The `headrace` command, also as `python -m headrace.cases`."""

from .command_line import main

if __name__ == "__main__":
    main()
