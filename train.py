"""Train a separator: python train.py --help."""

from demucs_lightning.commands.train import main

if __name__ == "__main__":
    main()
