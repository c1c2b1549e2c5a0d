"""The config of a run: the model, what it is trained to do, and how."""

from typing import Literal

from pydantic import Field, model_validator

from configs.base import Config
from models import ModelConfig
from models.baselines.base import BaselineConfig
from models.objectives import ObjectiveConfig, default_objectives
from training.monitor import LAST


class OptimConfig(Config):
    """AdamW, warm-up, cosine."""

    lr: float = Field(default=1e-3, gt=0)
    gene_embedding_lr: float = Field(
        default=1.0,
        ge=0,
        description="learning rate of the network's gene embeddings, as a multiple of lr; 0: "
        "frozen at their start",
    )
    frozen_layers: int = Field(
        default=0,
        ge=0,
        description="first layers of the network that keep the weights they start with, and with "
        "them its embeddings; for a run with init_from",
    )
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="fraction of all steps")
    gradient_clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    batch_size: int = Field(
        default=32,
        ge=1,
        description="cells an update, over all ranks; of a network that looks at sets of cells, "
        "as many whole sets as have about so many",
    )
    tokens_per_batch: int | None = Field(
        default=None,
        ge=1,
        description="most tokens that a process computes on at once: an "
        "update's cells are cut to fit and their gradients added up, so that the device's memory "
        "does not bound batch_size; null: a process's part of the update at once",
    )
    max_epochs: int = Field(default=25, ge=1)
    patience: int = Field(default=8, ge=1, description="epochs without a better val score")
    weight_averaging: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, such as 0.99; val "
        "scores and the run's weights are the average's; null: none is kept",
    )


class AugmentConfig(Config):
    """Applied to training cells only."""

    token_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of tokens left out"
    )
    count_thinning: float = Field(
        default=0.0, ge=0, lt=1, description="largest fraction of the counts binomially removed"
    )


class TrackingConfig(Config):
    """Weights & Biases; ``runs/<name>/`` is written whatever is chosen here."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online when a key is set, offline otherwise"
    )
    project: str = "nanocell"
    group: str | None = Field(default=None, description="null: of folds the run's name")
    tags: list[str] = []
    init_timeout: float = Field(default=5.0, gt=0, description="seconds")


class TrainConfig(Config):
    """One run: ``runs/<name>/``; on cells in folds one of each, ``runs/<name>_fold_<group>/``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under runs_dir")
    data: str = Field(
        description="folder that 01 wrote, such as data/baron_human_rank: of cells, or of folds"
    )
    model: ModelConfig
    objectives: list[ObjectiveConfig] = Field(
        default_factory=default_objectives,
        min_length=1,
        description="of a network: what it is trained to do, all at once, each kind once",
    )
    init_from: str | None = Field(
        default=None,
        description="run folder whose weights a network starts from, gene embeddings by gene id; "
        "a run that is resumed continues from its checkpoint instead",
    )
    init_from_sha256: str | None = Field(
        default=None, description="checksum of these weights; filled in when the run starts"
    )
    monitor: str | None = Field(
        default=None,
        description="val score that chooses the epoch whose weights the run ends with; last: none "
        "does, training goes to the end of max_epochs; null: macro_f1 if there are classes, else "
        "the first objective's loss, and with optim.weight_averaging last",
    )
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    tracking: TrackingConfig = TrackingConfig()
    runs_dir: str = "runs"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="auto: bfloat16 on CUDA devices that have it, float32 elsewhere",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the transformer blocks: a minute or more at the start, for "
        "faster updates on CUDA; on a CPU it was measured not to pay",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="of several processes, each holds the whole network (ddp), or a shard of it "
        "and of its optimizer (fsdp), for a network that does not fit one GPU",
    )
    seed: int = Field(default=0, ge=0)
    test: bool = Field(
        default=True,
        description="false: val until you are done; nothing of test is predicted, scored or "
        "logged, and 03 compares the run on val",
    )

    @property
    def is_baseline(self) -> bool:
        """Whether the model is fitted in one call: a baseline or a comparator."""
        return isinstance(self.model, BaselineConfig)

    @property
    def is_transductive(self) -> bool:
        """Whether the model is fitted on the cells that it predicts too, without their labels."""
        return getattr(self.model, "is_transductive", False)

    @property
    def members(self) -> list[str]:
        """Run folders of a committee's members; empty for every other model."""
        return getattr(self.model, "members", [])

    @property
    def is_network(self) -> bool:
        """Whether the model is trained by the loop: it is no baseline, and no committee."""
        return not (self.is_baseline or self.members)

    @property
    def ends_with_last_epoch(self) -> bool:
        """Whether the run's weights are those of the last epoch, and no val score chooses them."""
        is_averaged = self.optim.weight_averaging is not None
        return self.monitor == LAST or (self.monitor is None and is_averaged)

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        kinds = [objective.kind for objective in self.objectives]
        if repeated := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"objectives: listed twice: {', '.join(repeated)}")
        is_scored = any(objective.is_scored for objective in self.objectives)
        if self.is_network and not (is_scored or self.ends_with_last_epoch):
            raise ValueError("objectives: none has a val score; set monitor=last")
        return self
