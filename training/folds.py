"""One command trains every fold: the run of each, by a config of its own."""

from pathlib import Path

from dataset.store.folds import fold_paths
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
            update={"name": f"{config.name}_{path.name}", "data": str(path), "tracking": tracking}
        )
        for path in paths
    ]
