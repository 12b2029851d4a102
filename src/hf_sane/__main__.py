"""Run the program `hf-sane` with `python -m hf_sane`, if its script is not on the path."""

import sys

from hf_sane.cli.entry import main

if __name__ == "__main__":
    sys.argv[0] = "hf-sane"  # name of the program in records and messages
    main()
