"""Score a checkpoint: python test.py resume_checkpoint=PATH."""

from demucs_lightning.allocator import own_process
from demucs_lightning.commands import loaded

if __name__ == "__main__":
    own_process()  # before torch is loaded
    loaded("test").main()
