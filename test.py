"""Score a checkpoint: python test.py resume_checkpoint=PATH."""

from demucs_lightning.allocator import own_process

if __name__ == "__main__":
    own_process()  # before torch is loaded
    from demucs_lightning.commands.test import main

    main()
