"""`python -m spoke` is `felloe-spoke`."""

from spoke.cli.felloe_spoke import main

if __name__ == "__main__":
    main()
