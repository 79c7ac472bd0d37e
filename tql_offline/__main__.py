"""`python -m tql_offline`: the command line."""

from tql_offline.cli import main

if __name__ == "__main__":
    main()
