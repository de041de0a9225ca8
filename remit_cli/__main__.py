"""`python -m remit_cli`."""

from remit_cli.app import main

if __name__ == "__main__":
    main()
