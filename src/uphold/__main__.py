"""`python -m uphold`."""

from uphold.cli.main import main

main()
