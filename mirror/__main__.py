"""`python -m mirror` is `shoal`: how one command starts another with the same interpreter."""

from mirror.cli import main

main()
