"""The encoded folder that a run was trained on, for what is judged on its own cells."""

from dataset.store.encoded_folder import EncodedFolder
from evaluation.annotated_file import AnnotationError
from training.runs import Run
from training.same_run import SAME_CELLS


def trained_on(run: Run, data: str | None = None) -> EncodedFolder:
    """Open it.

    Parameters
    ----------
    run
        The run.
    data
        Where the folder is; None: where it was.

    Raises
    ------
    AnnotationError, EncodedFolderError
        If the folder holds other cells, or is not there.
    """
    folder = EncodedFolder(data or run.config.data)
    if other := [key for key in SAME_CELLS if folder.meta[key] != run.meta[key]]:
        raise AnnotationError(
            f"{folder.path}: is not the folder that {run.path} was trained on (another "
            f"{', '.join(other)}); name that one with --data"
        )
    return folder
