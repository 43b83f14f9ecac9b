"""`python -m memlayer` is the `memlayer` command."""

from memlayer.cli import main

if __name__ == "__main__":
    main()
