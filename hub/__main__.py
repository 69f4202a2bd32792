"""`python -m hub` is `felloe-hub`."""

from hub.cli.felloe_hub import main

if __name__ == "__main__":
    main()
