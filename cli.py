"""Run the command line from a checkout: `python cli.py train --size xl`."""

from tql_offline.__main__ import main

if __name__ == "__main__":
    main()
