"""`python -m frugal VERB` is `frugal VERB`."""

from frugal.cli import main

if __name__ == "__main__":
    main()
