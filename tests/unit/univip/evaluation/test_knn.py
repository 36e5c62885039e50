"""Weighted nearest neighbours and their scores against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from univip.evaluation import knn
from univip.evaluation.knn import average_precision, knn_scores, mean_average_precision, top1_accuracy


def clusters(num_images, seed, classes=4, dim=6):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (num_images,), generator=generator)
    features = centres[labels] + 1.2 * torch.randn(num_images, dim, generator=generator)
    return features, labels


def one_hot(labels):
    return torch.nn.functional.one_hot(labels, 4).bool()


def test_scores_are_those_of_scikit_learn():
    bank, bank_labels = clusters(300, 0)
    queries, labels = clusters(100, 1)
    reference = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1.0 - d) / 0.07)
    ).fit(bank.double().numpy(), bank_labels.numpy())

    scores = knn_scores(
        queries, bank, one_hot(bank_labels), neighbours=20, temperature=0.07, leave_one_out=False
    )

    shares = (scores / scores.sum(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(shares, reference.predict_proba(queries.double().numpy()), atol=1e-4)
    expected = reference.score(queries.double().numpy(), labels.numpy())
    assert 0.5 < expected < 1.0
    assert top1_accuracy(scores, one_hot(labels)) == pytest.approx(expected)


def test_leave_one_out_is_the_bank_without_the_query_in_every_chunk(monkeypatch):
    monkeypatch.setattr(knn, "CHUNK", 7)
    features, labels = clusters(30, 2)
    settings = {"neighbours": 5, "temperature": 0.07}

    scores = knn_scores(features, features, one_hot(labels), leave_one_out=True, **settings)

    for i in range(30):
        rest = torch.arange(30) != i
        expected = knn_scores(
            features[i : i + 1], features[rest], one_hot(labels[rest]), leave_one_out=False, **settings
        )
        torch.testing.assert_close(scores[i : i + 1], expected, rtol=1e-4, atol=1e-2)


def test_bank_smaller_than_the_neighbourhood_is_used_whole():
    features, labels = clusters(5, 3)

    scores = knn_scores(
        features, features, one_hot(labels), neighbours=20, temperature=1.0, leave_one_out=True
    )

    cosine = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(features).T
    votes = cosine.exp().fill_diagonal_(0.0) @ one_hot(labels).float()
    torch.testing.assert_close(scores, votes)


def test_image_of_several_classes_votes_for_each():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([[True, True, False], [False, False, True]])

    scores = knn_scores(bank[:1], bank, labels, neighbours=1, temperature=1.0, leave_one_out=False)

    torch.testing.assert_close(scores, torch.tensor([[np.e, np.e, 0.0]], dtype=torch.float32))


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_average_precision_is_that_of_scikit_learn_also_with_ties(levels):
    generator = torch.Generator().manual_seed(levels)
    for _ in range(20):
        scores = torch.randint(levels, (50,), generator=generator).float()
        positives = torch.rand(50, generator=generator) < 0.2
        positives[0] = True

        expected = average_precision_score(positives.numpy(), scores.numpy())

        assert average_precision(scores, positives) == pytest.approx(expected, abs=1e-12)


def test_mean_skips_classes_without_a_positive_and_images_that_are_unknown():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.4], [0.1, 0.7, 0.3]])
    labels = torch.tensor([[False, False, False], [True, False, False], [False, True, False]])
    everything = torch.ones_like(labels)
    known = everything.clone()
    known[0, 0] = False

    assert mean_average_precision(scores, labels, everything) == pytest.approx((0.5 + 1.0) / 2)
    assert mean_average_precision(scores, labels, known) == pytest.approx(1.0)
    assert np.isnan(mean_average_precision(scores, torch.zeros_like(labels), everything))
