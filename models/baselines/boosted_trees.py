"""Boosted trees as plain arrays: taken out of scikit-learn, which can only pickle them.

Every tree is a run of rows of one table of nodes. A leaf is its own child, so that all cells walk
all trees of a round together for as many steps as the deepest of them has.
"""

from dataclasses import dataclass

import numpy as np
import sklearn
from scipy.special import expit, softmax
from sklearn.ensemble import HistGradientBoostingClassifier

from configs.user_error import UserError


class TreesError(UserError):
    """scikit-learn keeps its trees in another way than this code knows."""


@dataclass(frozen=True)
class BoostedTrees:
    """The trees of all rounds; one a round for two classes, else one for each class.

    Attributes
    ----------
    column, threshold
        Of every node, ``(n_nodes,)``: a cell goes right where its value is above the threshold.
    children
        Nodes to the left and to the right, ``(n_nodes, 2)``; a leaf is its own.
    value
        What a leaf adds to the score of its class, ``(n_nodes,)``.
    roots
        First node of every tree, ``(n_rounds, n_trees)``.
    depth
        Steps from the roots of a round to its deepest leaf, ``(n_rounds,)``.
    baseline
        Scores before the first round, ``(n_trees,)``.
    """

    column: np.ndarray
    threshold: np.ndarray
    children: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    depth: np.ndarray
    baseline: np.ndarray

    @classmethod
    def of(cls, model: HistGradientBoostingClassifier, n_rounds: int) -> "BoostedTrees":
        """Copy the first rounds of a fitted model: the one place that reads private attributes.

        Raises
        ------
        TreesError
            If they are not there, or not what they were in scikit-learn 1.6 to 1.9.
        """
        try:
            trees = [
                [tree.nodes for tree in of_round] for of_round in model._predictors[:n_rounds]
            ]
            sizes = np.array([[len(nodes) for nodes in of_round] for of_round in trees])
            nodes = np.concatenate([nodes for of_round in trees for nodes in of_round])
            first = (np.cumsum(sizes) - sizes.ravel()).reshape(sizes.shape)
            is_leaf = nodes["is_leaf"].astype(bool)
            children = np.column_stack([nodes["left"], nodes["right"]]).astype(np.int32)
            children += np.repeat(first.ravel(), sizes.ravel()).astype(np.int32)[:, None]
            children[is_leaf] = np.flatnonzero(is_leaf).astype(np.int32)[:, None]
            return cls(
                column=np.where(is_leaf, 0, nodes["feature_idx"]).astype(np.int32),
                threshold=np.where(is_leaf, 0.0, nodes["num_threshold"]),
                children=children,
                value=np.where(is_leaf, nodes["value"], 0.0),
                roots=first.astype(np.int32),
                depth=np.array([max(n["depth"].max() for n in of_round) for of_round in trees]),
                baseline=np.asarray(model._baseline_prediction, dtype=np.float64).ravel(),
            )
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise _moved(error) from error

    def check(self, values: np.ndarray, expected: np.ndarray) -> None:
        """Raise a TreesError unless the probabilities of some cells are the ones expected."""
        found = self.predict_proba(values)
        if found.shape != expected.shape or np.abs(found - expected).max() > 1e-6:
            raise _moved("they predict something else")

    def predict_proba(self, values: np.ndarray) -> np.ndarray:
        """Return probabilities of the classes that have trees, of values ``(n, n_columns)``."""
        scores = np.tile(self.baseline, (len(values), 1))
        first = np.arange(len(values))[:, None] * values.shape[1]  # of each cell's values
        for roots, depth in zip(self.roots, self.depth, strict=True):
            node = np.tile(roots, (len(values), 1))  # (n, n_trees)
            for _ in range(depth):
                own = values.take(first + self.column.take(node))
                goes_right = own > self.threshold.take(node)
                node = self.children.take(2 * node + goes_right)
            scores += self.value.take(node)
        if scores.shape[1] > 1:
            return softmax(scores, axis=1)
        second = expit(scores)
        return np.hstack([1 - second, second])


def _moved(why: object) -> TreesError:
    return TreesError(
        f"scikit-learn {sklearn.__version__} keeps its boosted trees in another way than versions "
        f"1.6 to 1.9 do ({why}); install one that requirements.txt names"
    )
