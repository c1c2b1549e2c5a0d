"""Which folds a config asks for: one config each, of an encoded folder by itself."""

import shutil

from dataset.choose_cells import Annotations, find_folds
from dataset.config import PreprocessConfig
from dataset.encode_error import EncodeError
from dataset.keep_counts import kept_counts
from dataset.quality_control import measure_cells
from dataset.store.folds import FOLD, fold_name
from dataset.store.layout import check_replaceable
from dataset.workers import Steps


def configs_to_encode(
    config: PreprocessConfig, steps: Steps, *, overwrite: bool
) -> list[PreprocessConfig]:
    """Return a config for each fold, in order; the config itself where it has none, or is of one.

    Parameters
    ----------
    config
        What to encode.
    steps
        The workers.
    overwrite
        Remove the folds of an earlier split, which this one has not.

    Raises
    ------
    EncodeError
        If the groups are too few, or their names too much alike, or the folder is no folder of
        folds.
    FolderError
        If a fold of an earlier split holds what ``encode`` does not write.
    """
    split = config.split
    if not split.in_folds or split.fold is not None:
        return [config]
    if (config.folder / "meta.json").exists():
        raise EncodeError(
            f"{config.folder}: holds cells that are not split in folds; choose another name in "
            "the config, or remove it"
        )
    store = kept_counts(config, steps)
    prefix = config.quality_control.mitochondrial_prefix
    measures = measure_cells(store, mitochondrial_prefix=prefix, steps=steps)
    folds = find_folds(Annotations.read(store, config), measures, config)
    name_of = {fold_name(fold).lower(): fold for fold in folds}  # as a disk may see them
    if alike := [fold for fold in folds if name_of[fold_name(fold).lower()] != fold]:
        other = name_of[fold_name(alike[0]).lower()]
        raise EncodeError(
            f"split.key: the groups {alike[0]!r} and {other!r} of {split.key!r} would share the "
            f"folder {fold_name(other)!r}: rename one of them in obs"
        )
    if overwrite:
        for path in config.folder.glob(f"{FOLD}*"):
            if path.name not in map(fold_name, folds):
                check_replaceable(path)
                shutil.rmtree(path)
    return [
        config.model_copy(update={"split": split.model_copy(update={"fold": fold})})
        for fold in folds
    ]
