import torch

from models.mlp_classifier import MLPClassifier


def test_maps_embeddings_to_logits_through_one_hidden_layer():
    torch.manual_seed(0)
    head = MLPClassifier(d_model=6, d_hidden=5, n_classes=3, dropout=0.5).eval()
    x = torch.randn(4, 6)
    first, last = head.layers[0], head.layers[-1]
    expected = last(torch.nn.functional.gelu(first(x)))
    torch.testing.assert_close(head(x), expected)
    assert head(x).shape == (4, 3)
