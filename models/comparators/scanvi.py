"""scANVI: a variational autoencoder with labels, fitted on the train cells and on the query.

References
----------
Xu et al. 2021, Probabilistic harmonization and annotation of single-cell transcriptomics data with
deep generative models, Molecular Systems Biology 17; genes, sizes and epochs are those of the
scvi-tools tutorial "Atlas-level integration of lung data".
"""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from configs.base import ConfigError
from models.baselines.base import LabeledCells, all_classes
from models.comparators.base import ComparatorConfig, package

UNLABELED = "Unknown"
# Shares of the genes behind each point of the fit of variance to mean: scanpy's own first. In a
# batch of few cells many genes have the same mean, and then that fit fails.
SPANS = (0.3, 0.8, 1.0)


class ScANVIConfig(ComparatorConfig):
    """scVI on all cells, then scANVI from it with the labels of train; val is not looked at."""

    packages: ClassVar[tuple[str, ...]] = ("scvi-tools", "scanpy")
    modules: ClassVar[tuple[str, ...]] = ("scvi", "anndata", "scanpy", "skmisc.loess")
    is_transductive: ClassVar[bool] = True
    kind: Literal["scanvi"] = "scanvi"
    n_top_genes: int = Field(default=2000, ge=1, description="highly variable genes")
    max_epochs: int | None = Field(
        default=None, ge=1, description="of scVI; null: its own, 400 of up to 20,000 cells"
    )
    scanvi_epochs: int = Field(default=20, ge=1, description="with labels, from scVI's weights")

    def fit_predict(
        self, cells: LabeledCells, batches: np.ndarray, n_classes: int, seed: int, device: str
    ) -> np.ndarray:
        """Return class probabilities of all cells, ``(n_cells, n_classes)``."""
        scvi, anndata, scanpy = package("scvi"), package("anndata"), package("scanpy")
        scvi.settings.seed = seed
        adata = anndata.AnnData(cells.counts)
        adata.obs["batch"] = batches
        adata.obs["label"] = np.where(cells.labels < 0, UNLABELED, cells.labels.astype(str))
        if adata.n_vars > self.n_top_genes:
            self._keep_variable_genes(scanpy, adata)
        quiet = {"accelerator": device, "enable_progress_bar": False}
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch", labels_key="label")
        pretrained = scvi.model.SCVI(adata, n_layers=2, n_latent=30, gene_likelihood="nb")
        pretrained.train(max_epochs=self.max_epochs, **quiet)
        model = scvi.model.SCANVI.from_scvi_model(pretrained, unlabeled_category=UNLABELED)
        model.train(max_epochs=self.scanvi_epochs, n_samples_per_label=100, **quiet)
        found = model.predict(soft=True)
        return all_classes(found.to_numpy(), found.columns.astype(int), n_classes)

    def _keep_variable_genes(self, scanpy: Any, adata: Any) -> None:
        for span in SPANS:
            try:
                scanpy.pp.highly_variable_genes(
                    adata,
                    flavor="seurat_v3",
                    n_top_genes=self.n_top_genes,
                    batch_key="batch",
                    span=span,
                    subset=True,
                )
            except ValueError as error:  # of loess
                failed = error
            else:
                return
        raise ConfigError(
            f"model.n_top_genes: scanpy finds no highly variable genes in these batches "
            f"({failed}); with n_top_genes={adata.n_vars} none need be found"
        )
