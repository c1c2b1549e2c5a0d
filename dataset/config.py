"""The config of an encoded dataset: what is read, who stays, who is train, val and test."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from configs.base import Config
from dataset import TokenizerConfig
from dataset.reading.cell_url import without_secrets
from dataset.store.folds import fold_name

COUNTS = "counts"  # folder under data_dir: the counts of all inputs, which encodings share


class QualityControlConfig(Config):
    """Thresholds of the cell and gene filters, applied alike to train, val and test cells."""

    min_genes: int = Field(default=200, ge=0, description="fewest detected genes in a cell")
    max_genes: int | None = Field(default=None, ge=1, description="most detected genes in a cell")
    min_counts: int = Field(default=1, ge=1, description="fewest counts in a cell")
    max_percent_mitochondrial: float | None = Field(default=None, gt=0, le=100)
    mitochondrial_prefix: str = Field(default="MT-", description="matched ignoring case")
    scrublet: bool = Field(default=False, description="score doublets with Scrublet, per batch")
    max_doublet_score: float | None = Field(default=None, gt=0, le=1)
    max_dropped_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="largest share of the cells that may be dropped, by these thresholds or for "
        "their labels: more is an error that says which setting does it",
    )

    @model_validator(mode="after")
    def _check(self) -> "QualityControlConfig":
        if self.max_doublet_score is not None and not self.scrublet:
            raise ValueError("max_doublet_score needs scrublet: true")
        if self.max_genes is not None and self.max_genes < self.min_genes:
            raise ValueError(f"max_genes {self.max_genes} is below min_genes {self.min_genes}")
        return self


class SplitConfig(Config):
    """Train, val and test: of whole groups where there are groups, else of cells.

    Held out once, or in folds: every group, or every k-th of the cells, is test in one fold and
    val in another, and each fold is an encoded folder of its own.
    """

    kind: Literal["holdout", "leave_one_group_out", "k_fold"] = "holdout"
    key: str | None = Field(
        default=None,
        description="obs column whose groups stay together (donor); null: stratify by cell type, "
        "at random without labels",
    )
    val: list[str] | None = Field(default=None, description="groups of val; null: chosen by seed")
    test: list[str] | None = Field(default=None, description="groups of test; null: by seed")
    val_fraction: float = Field(default=0.15, gt=0, lt=1, description="share of the cells")
    test_fraction: float = Field(default=0.20, gt=0, lt=1, description="share of the cells")
    k: int = Field(default=5, ge=3, description="of k_fold: how many folds")
    seed: int = Field(default=0, ge=0, lt=2**32)
    fold: str | None = Field(
        default=None,
        description="the one fold to encode: a group, or a number from 1 to k; null: all of them",
    )

    @property
    def in_folds(self) -> bool:
        """Whether there are several folds, of which this may be one."""
        return self.kind != "holdout"

    @model_validator(mode="after")
    def _check(self) -> "SplitConfig":
        if self.key is None and (self.val or self.test):
            raise ValueError("val and test name groups of an obs column: say which with key")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction leave nothing to train on")
        if both := set(self.val or []) & set(self.test or []):
            raise ValueError(f"groups in both val and test: {sorted(both)}")
        if self.in_folds and (self.val or self.test):
            raise ValueError(f"{self.kind} makes every fold val and test once: leave them out")
        if self.fold is not None and not self.in_folds:
            raise ValueError(f"fold {self.fold!r}: a holdout has no folds")
        if self.kind == "leave_one_group_out" and self.key is None:
            raise ValueError(f"{self.kind} holds out groups of an obs column: name it with key")
        if self.kind == "k_fold" and self.key is not None:
            raise ValueError(f"{self.kind} deals single cells: leave key out, or choose another")
        return self


class PreprocessConfig(Config):
    """One encoded dataset: ``data/<name>/``, or that of a fold, ``data/<name>/fold_<name>/``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under data_dir")
    input: str | list[str] = Field(
        description="path, glob or address (s3://, https://) of .h5ad or .zarr files, a list of "
        "them, or a name in dataset/sources.py"
    )
    label_key: str | None = Field(
        description="obs column with the cell type; null: unlabelled cells, to pretrain on"
    )
    counts: str = Field(
        default="auto", description="where counts lie: auto, X, raw, or the name of a layer"
    )
    gene_id_key: str | None = Field(default=None, description="var column of ids; null: var_names")
    gene_symbol_key: str | None = Field(default=None, description="var column of symbols")
    gene_map: str | None = Field(
        default=None,
        description="csv of one-to-one orthologs, whose first two columns are names of the same "
        "gene: all get that of the first, and genes that it lacks are left out",
    )
    genes: Literal["union", "intersection"] = Field(
        default="union", description="over several files: genes in any of them, or in all"
    )
    batch_key: str | None = Field(default=None, description="obs column of the donor or batch")
    time_key: str | None = Field(default=None, description="obs column of the time or stage")
    condition_keys: list[str] = Field(
        default=[],
        description="obs columns kept as integer codes beside each cell (batch, donor, "
        "perturbation), for networks and objectives that read conditions",
    )
    position_keys: list[str] = Field(
        default=[],
        description="two numeric obs columns, such as [x, y], kept as the position of each cell, "
        "for networks that read positions",
    )
    organism: str | None = None
    ignore_labels: list[str] = Field(default=[], description="labels that are not a cell type")
    min_cells_per_class: int = Field(
        default=3,
        ge=2,
        description="fewest train cells of a type; the cells of rarer types are dropped, and "
        "listed",
    )
    quality_control: QualityControlConfig = QualityControlConfig()
    split: SplitConfig = SplitConfig()
    tokenizer: TokenizerConfig
    data_dir: str = "data"
    n_threads: int = Field(default=2, ge=1, description="threads that read and rank")
    cluster: str | None = Field(
        default=None,
        description="Dask scheduler that does the work instead, tcp://HOST:8786, or local",
    )

    @model_validator(mode="after")
    def _check(self) -> "PreprocessConfig":
        if self.name == COUNTS:
            raise ValueError(f"name {COUNTS!r} is taken: counts of all data sets are kept there")
        if self.label_key is None and self.ignore_labels:
            raise ValueError("ignore_labels names values of an obs column: say which (label_key)")
        if len(set(self.condition_keys)) < len(self.condition_keys):
            raise ValueError(f"condition_keys names a column twice: {self.condition_keys}")
        if self.position_keys and len(set(self.position_keys)) != 2:
            raise ValueError(
                f"position_keys: found {self.position_keys}; expected two obs columns, such as "
                "[x, y], or none"
            )
        return self

    @property
    def folder(self) -> Path:
        """Where it is written; of folds, where all of them are."""
        folder, fold = Path(self.data_dir) / self.name, self.split.fold
        return folder if fold is None else folder / fold_name(fold)

    def to_yaml(self) -> str:
        """Return every field as YAML text, without the keys and passwords of addresses."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        shown = [without_secrets(text) for text in inputs]
        written = self.model_copy(
            update={"input": shown[0] if isinstance(self.input, str) else shown}
        )
        return super(PreprocessConfig, written).to_yaml()
