"""``python test.py resume_checkpoint=PATH``: scores a checkpoint with nSDR on the test set, track
by track.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from demucs_lightning import pretrained, scores
from demucs_lightning.commands import settings, start
from demucs_lightning.commands.train import build_module, build_trainer, describe_model, quieten
from demucs_lightning.pretrained.checkpoints import package_of


def main(argv: Sequence[str] | None = None) -> None:
    settings.launch(test, argv)


def test(cfg: DictConfig) -> None:
    quieten()
    if cfg.resume_checkpoint is None:
        raise ValueError("test needs resume_checkpoint=PATH, the checkpoint to score.")
    checkpoint = pretrained.read_checkpoint(cfg.resume_checkpoint)
    found = checkpoint[pretrained.KEY]
    if found["klass"] in pretrained.CLASSES:  # the file says what to build, the settings need not
        package = package_of(checkpoint, cfg.resume_checkpoint)
        pretrained.check_fits(package)
        cfg.model = start.as_settings(package)
        for key in ("sources", "samplerate", "audio_channels"):
            cfg[key] = package.argument(key)
    pretrained.check_same_model(cfg.resume_checkpoint, checkpoint, describe_model(cfg))
    trainer = build_trainer(cfg, Path(HydraConfig.get().runtime.output_dir))
    module = build_module(cfg, found)
    pretrained.load_weights(module.model, checkpoint, cfg.resume_checkpoint)
    data = instantiate(cfg.data, dset=instantiate(cfg.dset))
    trainer.test(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        print(scores.table(module.scores))


if __name__ == "__main__":
    main()
