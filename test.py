"""Score a checkpoint: python test.py resume_checkpoint=PATH."""

from demucs_lightning.commands.test import main

if __name__ == "__main__":
    main()
