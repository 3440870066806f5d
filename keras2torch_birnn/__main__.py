"""Run the commands without the script ``k2t``: ``python -m keras2torch_birnn``."""

from keras2torch_birnn.cli import main

if __name__ == "__main__":
    main()
