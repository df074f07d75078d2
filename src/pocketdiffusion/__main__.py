"""python -m pocketdiffusion is the command pocket."""

from .cli.main import main

if __name__ == "__main__":
    main()
