"""Run the commands: ``python -m keras2torch_birnn.cli``."""

from keras2torch_birnn.cli.commands import main

if __name__ == "__main__":
    main()
