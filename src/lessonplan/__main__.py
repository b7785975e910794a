"""`python -m lessonplan` is the command line."""

from lessonplan.cli import main

main()
