"""The two configs a user writes: one encodes a dataset, the other trains on it."""

from typing import Literal

from pydantic import Field, model_validator

from configs.base import Config
from dataset import TokenizerConfig
from dataset.reading.cell_url import without_secrets
from models import ModelConfig
from models.objectives import ObjectiveConfig, default_objectives


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
    """Who goes to train, val and test: whole groups where there are groups, cells otherwise."""

    key: str | None = Field(
        default=None,
        description="obs column whose groups stay together (donor); null: stratify by cell type, "
        "at random without labels",
    )
    val: list[str] | None = Field(default=None, description="groups of val; null: chosen by seed")
    test: list[str] | None = Field(default=None, description="groups of test; null: by seed")
    val_fraction: float = Field(default=0.15, gt=0, lt=1, description="share of the cells")
    test_fraction: float = Field(default=0.20, gt=0, lt=1, description="share of the cells")
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check(self) -> "SplitConfig":
        if self.key is None and (self.val or self.test):
            raise ValueError("val and test name groups of an obs column: say which with key")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction leave nothing to train on")
        if both := set(self.val or []) & set(self.test or []):
            raise ValueError(f"groups in both val and test: {sorted(both)}")
        return self


class PreprocessConfig(Config):
    """One encoded dataset: ``data/<name>/``."""

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
        if self.label_key is None and self.ignore_labels:
            raise ValueError("ignore_labels names values of an obs column: say which (label_key)")
        if len(set(self.condition_keys)) < len(self.condition_keys):
            raise ValueError(f"condition_keys names a column twice: {self.condition_keys}")
        return self

    def to_yaml(self) -> str:
        """Return every field as YAML text, without the keys and passwords of addresses."""
        places = [self.input] if isinstance(self.input, str) else self.input
        shown = [without_secrets(place) for place in places]
        told = self.model_copy(
            update={"input": shown[0] if isinstance(self.input, str) else shown}
        )
        return super(PreprocessConfig, told).to_yaml()


class OptimConfig(Config):
    """AdamW, warm-up, cosine."""

    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="share of all steps")
    gradient_clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    batch_size: int = Field(default=32, ge=1, description="cells an update, over all ranks")
    tokens_per_batch: int | None = Field(
        default=None,
        ge=1,
        description="most tokens that a process computes on at once: an "
        "update's cells are cut to fit and their gradients added up, so that the device's memory "
        "does not bound batch_size; null: a process's share of the update at once",
    )
    max_epochs: int = Field(default=25, ge=1)
    patience: int = Field(default=8, ge=1, description="epochs without a better val score")


class AugmentConfig(Config):
    """Applied to training cells only."""

    token_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of tokens left out")
    count_thinning: float = Field(
        default=0.0, ge=0, lt=1, description="largest share of the counts binomially removed"
    )


class TrackingConfig(Config):
    """Weights & Biases; ``runs/<name>/`` is written whatever is chosen here."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online when a key is set, offline otherwise"
    )
    project: str = "nanocell"
    group: str | None = None
    tags: list[str] = []
    init_timeout: float = Field(default=5.0, gt=0, description="seconds")


class TrainConfig(Config):
    """One run: ``runs/<name>/``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under runs_dir")
    data: str = Field(description="folder that 01 wrote, such as data/baron_human_rank")
    model: ModelConfig
    objectives: list[ObjectiveConfig] = Field(
        default_factory=default_objectives,
        min_length=1,
        description="of a network: what it is trained to do, all at once, each kind once",
    )
    init_from: str | None = Field(
        default=None,
        description="run folder whose weights a network starts from, gene embeddings by gene id; "
        "a run that is resumed goes on from its checkpoint instead",
    )
    monitor: str | None = Field(
        default=None,
        description="val score that chooses the epoch; null: macro_f1 if there are classes, else "
        "the first objective's loss",
    )
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    tracking: TrackingConfig = TrackingConfig()
    runs_dir: str = "runs"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on CUDA cards that have it, float32 elsewhere"
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the transformer blocks: a minute or more at the start, for "
        "faster updates on CUDA; on a CPU it was measured not to pay",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="of several processes, each holds the whole network (ddp), or a slice of it "
        "and of its optimiser (fsdp), for a network that does not fit one card",
    )
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        kinds = [objective.kind for objective in self.objectives]
        if repeated := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"objectives: listed twice: {', '.join(repeated)}")
        return self
