"""Masked counts: hide genes of a cell, and predict their counts through a latent.

Wen et al. 2024, section 3, as CellPLM is pretrained: the cell embedding gives a Gaussian posterior
under a mixture prior (``models/gaussian_mixture.py``), and a decoder that knows the cell's batch
gives a negative binomial for each gene, whose means add up to the cell's library size. The loss is
the evidence lower bound of a denoising autoencoder, in nats a gene. Deliberate differences:

- every gene of every cell is hidden with the same probability. A gene without counts leaves no
  trace whether hidden or not, so its loss is taken at that probability, and not drawn
- the divergence costs nothing up to ``free_nats`` a cell (Kingma et al. 2016, section C.8), as
  there, but is not weighted beyond its place in the bound
- a batch that the decoder does not know is the mean of those it knows
- what is hidden is gone from the cell's library size too, as it is of cells that lack those genes

To impute genes that other cells do not measure, such as the cells of a tissue of which a panel of
genes was counted, ``measured_genes`` hides of every train cell what they lack
(``evaluation/impute.py``).

A hidden gene's token becomes ``<mask>``: a network that reads tokens sees how many there are. A
cell's genes beyond the end of its row count as not detected: encode with as many tokens as a cell
has genes. So do those that ``augment.token_dropout`` left out of a train cell: leave it at 0.

Legend: ``b`` cells, ``n`` tokens of all cells, ``g`` genes, ``v`` vocabulary, ``z`` latent width.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from configs.base import ConfigError
from dataset.batches import Batch, cell_of_token
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import N_SPECIALS, Vocabulary
from models.dropout import Dropout
from models.gaussian_mixture import GaussianMixture
from models.negative_binomial import nll_of_counts, nll_of_zero
from models.network import Encoded, Network
from models.objectives.base import (
    Decoded,
    Draw,
    Objective,
    check_genes,
    mask_genes,
    original_of,
)
from models.ranked_tokens import segments_of

# Added to the log-variance of a posterior, which would start as wide as the prior: the decoder
# would hear too little of the cell to learn from it, and the divergence be paid for nothing.
NARROW = -4.0
TARGET = "masked_counts_target"  # of each token in the batch: the count that was there, or -1


class MaskedCountsConfig(Objective):
    """Predict the counts of hidden genes; needs no labels."""

    kind: Literal["masked_counts"] = "masked_counts"
    hidden_fraction: float = Field(default=0.25, gt=0, lt=1, description="genes of a cell hidden")
    measured_genes: tuple[str, ...] | None = Field(
        default=None,
        description="ids or symbols of the genes of a panel, for a network that is to impute the "
        "others: those are hidden from it always, and of the panel's hidden_fraction; null: all",
    )
    d_latent: int = Field(default=32, ge=1)
    n_components: int = Field(default=16, ge=1, description="of the latent's mixture prior")
    free_nats: float = Field(
        default=5.0, ge=0, description="divergence of a cell from the prior that costs nothing"
    )
    batch_key: str | None = Field(
        default=None,
        description="obs column whose value the decoder is told, one of the condition_keys of "
        "the encoded folder, so that the latent need not know it; null: none",
    )
    hides: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "CountDecoder":
        """Return the latent and its decoder."""
        check_genes(self.kind, facts)
        if self.batch_key is not None and self.batch_key not in facts.conditions:
            raise ConfigError(
                f"objectives: masked_counts decodes by the obs column {self.batch_key!r}, and the "
                f"cells were encoded with condition_keys: {list(facts.conditions)}; name one of "
                f"them, or encode again with condition_keys: [{self.batch_key}]"
            )
        return CountDecoder(self, network.d_model, dropout, facts)

    def row_names(self, facts: DataFacts) -> dict[str, Sequence[str]]:
        """Return the gene ids, and the names of the batches that the decoder is told."""
        of_genes = ("to_genes.weight", "to_genes.bias", "log_theta")
        found: dict[str, Sequence[str]] = dict.fromkeys(of_genes, facts.vocabulary.gene_ids)
        if self.batch_key is not None:
            found["batch_embedding.weight"] = facts.conditions[self.batch_key]
        return found

    def hide(self, batch: Batch, draw: Draw, facts: DataFacts) -> Batch:
        """Replace tokens by ``<mask>`` without their counts, which leave the library size too."""
        original = original_of(batch)
        token_ids, counts = original["token_ids"], original["counts"]
        hidden = hidden_probability(self, facts.vocabulary).to(counts.device)
        is_hidden = (token_ids >= N_SPECIALS) & (
            draw(0) < hidden[(token_ids - N_SPECIALS).clamp(min=0)]
        )
        library_size = left_of_library(original, torch.where(is_hidden, 0, counts))
        target = torch.where(is_hidden & is_decoded(token_ids), counts, -1.0)
        masked = mask_genes(batch, is_hidden)
        return cast(Batch, {**masked, "library_size": library_size, TARGET: target})

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the negative evidence lower bound of each cell, in nats a gene, ``(b,)``."""
        assert isinstance(head, CountDecoder)
        latent = head.encode(encoded.cell_embedding)
        nll = self._nll(head, latent, batch)
        return (nll + latent.divergence.clamp(min=self.free_nats)) / head.n_genes

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the latent's mean, the probability of each component, and the two losses."""
        assert isinstance(head, CountDecoder)
        latent = head.encode(encoded.cell_embedding)
        nll = self._nll(head, latent, batch) / head.n_genes
        return {
            "masked_counts_latent": latent.mean,
            "masked_counts_component": latent.assignment,
            "masked_counts_nll": nll,
            "masked_counts_divergence": latent.divergence,
        }

    def decode(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Decoded:
        """Return the decoder's negative binomials at the mean of the latent."""
        assert isinstance(head, CountDecoder)
        latent = head.encode(encoded.cell_embedding)
        return Decoded(head.log_share(latent.mean, batch), head.log_theta[N_SPECIALS:])

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return the loss, and its part that is not the prior's: both in nats, means over cells.

        ``masked_counts_loss`` is of a hidden gene, ``masked_counts_divergence`` of a cell.
        """
        return {
            "masked_counts_loss": float(predictions["masked_counts_nll"].mean()),
            "masked_counts_divergence": float(predictions["masked_counts_divergence"].mean()),
        }

    def _nll(self, head: "CountDecoder", latent: "Latent", batch: Batch) -> Tensor:
        """Negative log-likelihood of all genes of each cell, ``(b,)``, from the hidden ones.

        Each hidden gene stands for as many as are not hidden: it counts by the inverse of its
        probability. All genes without a count are hidden by theirs, and count once.
        """
        original = original_of(batch)
        size = original["library_size"][:, :1].clamp(min=1)
        log_mean = head.log_share(latent.sample, batch) + size.log()  # (b, g)
        log_theta = head.log_theta[N_SPECIALS:]
        of_zero = nll_of_zero(log_mean, log_theta).sum(dim=1)
        (token,) = torch.nonzero(is_decoded(original["token_ids"]), as_tuple=True)
        cell, gene = cell_of_token(batch)[token], original["token_ids"][token] - N_SPECIALS
        target = cast("dict[str, Tensor]", batch)[TARGET][token]
        of_gene = log_mean[cell, gene], log_theta[gene]
        of_zero = of_zero.index_add(0, cell, -nll_of_zero(*of_gene))  # these were detected
        hidden = target >= 0
        of_gene = of_gene[0][hidden], of_gene[1][hidden]
        of_count = nll_of_counts(target[hidden], *of_gene) / head.hidden_probability[gene[hidden]]
        return of_zero.index_add(0, cell[hidden], of_count)


def is_decoded(token_ids: Tensor) -> Tensor:
    """Return which tokens are genes of the cell itself, not of its previous profile, ``(n,)``."""
    return (token_ids >= N_SPECIALS) & (segments_of(token_ids) == 0)


@lru_cache(maxsize=8)
def hidden_probability(config: MaskedCountsConfig, vocabulary: Vocabulary) -> Tensor:
    """Return the probability by which each gene of a cell is hidden, ``(g,)``.

    Raises
    ------
    ConfigError
        If no gene would ever be shown.
    """
    hidden = torch.full((vocabulary.n_genes,), config.hidden_fraction)
    if config.measured_genes is not None:
        measured = vocabulary.match(config.measured_genes).columns
        if not (measured >= 0).any():
            raise ConfigError(
                f"objectives: masked_counts: none of the {len(measured)} measured_genes is a gene "
                f"of the encoded folder, which has such as {', '.join(vocabulary.gene_ids[:5])}; "
                "name genes as it does"
            )
        shown = torch.zeros(len(hidden), dtype=torch.bool)
        shown[measured[measured >= 0]] = True
        hidden[~shown] = 1
    return hidden


def left_of_library(batch: Batch, shown: Tensor) -> Tensor:
    """Return the library sizes, ``(b, s)``, of cells of which these counts, ``(n,)``, are shown.

    Counts that are in no token are shown in the same proportion.
    """
    size = batch["library_size"]
    segment = segments_of(batch["token_ids"]).clamp(max=size.shape[1] - 1)
    place = cell_of_token(batch) * size.shape[1] + segment
    zeros = torch.zeros_like(size).flatten()
    before, after = (zeros.index_add(0, place, c).view_as(size) for c in (batch["counts"], shown))
    return size * after / before.clamp(min=1)


class Latent(NamedTuple):
    """Posterior of each cell."""

    mean: Tensor  # (b, z)
    sample: Tensor  # (b, z); the mean outside of training
    assignment: Tensor  # (b, k), probability of each component of the prior
    divergence: Tensor  # (b,), from the prior, in nats


class CountDecoder(nn.Module):
    """The latent of a cell embedding, and two layers from there to the mean of each gene."""

    hidden_probability: Tensor  # (g,), of each gene in training

    def __init__(
        self, config: MaskedCountsConfig, d_model: int, dropout: float, facts: DataFacts
    ) -> None:
        super().__init__()
        self.n_genes, d = facts.vocabulary.n_genes, d_model
        hidden = hidden_probability(config, facts.vocabulary)
        self.register_buffer("hidden_probability", hidden.clone(), persistent=False)
        self.to_posterior = nn.Linear(d, 2 * config.d_latent)
        self.prior = GaussianMixture(config.n_components, config.d_latent)
        key = config.batch_key
        self.column = None if key is None else list(facts.conditions).index(key)
        n_batches = 0 if key is None else len(facts.conditions[key])
        self.batch_embedding = nn.Embedding(n_batches, d) if n_batches else None
        self.from_latent = nn.Linear(config.d_latent, d)
        self.layers = nn.Sequential(nn.GELU(), Dropout(dropout), nn.Linear(d, d), nn.GELU())
        self.to_genes = nn.Linear(d, facts.vocabulary.n_tokens)
        # Close to Poisson: the loss of counts that vary more says so by itself.
        self.log_theta = nn.Parameter(torch.full((facts.vocabulary.n_tokens,), 2.0))

    def encode(self, cell_embedding: Tensor) -> Latent:
        """Return the posterior of each cell, from its embedding ``(b, d)``."""
        mean, log_variance = self.to_posterior(cell_embedding).float().chunk(2, dim=1)
        log_variance = log_variance + NARROW
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        divergences = self.prior.divergences(mean, log_variance)
        return Latent(
            mean,
            mean + (0.5 * log_variance).exp() * noise,
            self.prior.assignment(divergences),
            self.prior.divergence(divergences),
        )

    def log_share(self, latent: Tensor, batch: Batch) -> Tensor:
        """Return the log of each gene's share of the cell's mean count, ``(b, g)``.

        For these latents ``(b, z)``.
        """
        told = self._batch_vector(batch)
        x = self.layers(self.from_latent(latent) + told) + told
        return self.to_genes(x).float()[:, N_SPECIALS:].log_softmax(dim=1)

    def _batch_vector(self, batch: Batch) -> Tensor | float:
        """Return what the decoder is told of each cell's batch, ``(b, d)``; 0: nothing."""
        if self.batch_embedding is None:
            return 0.0
        known, code = self.batch_embedding.weight, batch["conditions"][:, self.column]
        return torch.where(code[:, None] < 0, known.mean(dim=0), known[code.clamp(min=0)])
