"""Train a separator: python train.py --help."""

from demucs_lightning.allocator import own_process

if __name__ == "__main__":
    own_process()  # before torch is loaded
    from demucs_lightning.commands.train import main

    main()
