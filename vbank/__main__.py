"""`python -m vbank` is `vbank`, also under `accelerate launch -m vbank`."""

from vbank.cli import main

if __name__ == "__main__":
    main()
