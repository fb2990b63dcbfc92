"""`python -m concur_thp` is `concur-thp`."""

from concur_thp.cli import main

main()
