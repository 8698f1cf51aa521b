"""Run the command line with `python -m tgsent`."""

from tgsent.cli import main

if __name__ == "__main__":
    main()
