"""`python -m vitscale`: the same program as the `vitscale` command."""

from vitscale.cli import main

if __name__ == "__main__":
    main()
