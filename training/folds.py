"""One command trains every fold: the run of each, by a config of its own.

``init_from`` and a committee's members may be runs that were trained in the same folds: each fold
has its own ones, which have not seen its test cells either.
"""

from pathlib import Path

from dataset.store.folds import fold_paths
from models import ModelConfig
from training.config import TrainConfig


def config_of_each_fold(config: TrainConfig) -> list[TrainConfig]:
    """Return the configs of the runs ``<name>_fold_<group>``; without folds, the config itself.

    Raises
    ------
    EncodedFolderError
        If a fold is not encoded yet, or is of other cells than the others.
    """
    paths = fold_paths(config.data)
    if paths == [Path(config.data)]:
        return [config]
    group = {"group": config.tracking.group or config.name}  # in W&B they stand together
    tracking = config.tracking.model_copy(update=group)
    return [
        config.model_copy(
            update={
                "name": f"{config.name}_{path.name}",
                "data": str(path),
                "tracking": tracking,
                "init_from": config.init_from and _run_of_fold(config.init_from, path.name),
                "model": _model_of_fold(config, path.name),
            }
        )
        for path in paths
    ]


def _model_of_fold(config: TrainConfig, fold: str) -> ModelConfig:
    if not config.members:
        return config.model
    members = [_run_of_fold(member, fold) for member in config.members]
    return config.model.model_copy(update={"members": members})


def _run_of_fold(run: str, fold: str) -> str:
    of_fold = f"{run}_{fold}"
    return of_fold if Path(of_fold).exists() and not Path(run).exists() else run
