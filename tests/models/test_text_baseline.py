"""The text baseline: against scikit-learn, against the loss of reward models, and after a save."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from konomi.data.messages import Answered
from konomi.data.records import Comparison, Group
from konomi.errors import DataError
from konomi.models import text_baseline
from konomi.models.text_baseline import Ensemble, fit_text_baseline, make_ensemble, read_text_baseline
from konomi.ops import preference_loss
from some_comparisons import ragged

GROUPS = [group for group in ragged(0)[0] if group.comparisons]
TEXTS = [text for group in GROUPS for text in group.responses]


def test_it_is_scikit_learns_tfidf_and_logistic_regression_on_differences() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    reader = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit(TEXTS)
    rows, labels, weights = [], [], []
    for group in GROUPS:
        x = reader.transform(group.responses).toarray()
        for c in group.comparisons:
            for side, weight in ((1, c.label), (-1, 1 - c.label)):  # both sides of each, so that there are two classes
                rows += [side * (x[c.better] - x[c.worse]), -side * (x[c.better] - x[c.worse])]
                labels += [1, 0]
                weights += [weight / len(group.comparisons) / 2] * 2
    sure = np.array(weights) * len(weights) / 4 / sum(weights)  # the mean of a comparison is 1
    theirs = LogisticRegression(C=text_baseline.INVERSE_PENALTY, fit_intercept=False, tol=1e-8, max_iter=2000)
    theirs.fit(np.array(rows), labels, sample_weight=sure)
    ours = fit_text_baseline(GROUPS)
    assert ours.features(TEXTS).toarray() == pytest.approx(reader.transform(TEXTS).toarray())
    assert ours.scores(TEXTS) == pytest.approx(reader.transform(TEXTS) @ theirs.coef_[0], abs=2e-3)
    assert ours.scores(TEXTS).std() > 0.3


def test_at_its_weights_the_loss_of_reward_models_is_least() -> None:
    with_margin = [tuple(Comparison(c.better, c.worse, c.label, 0.3) for c in group.comparisons) for group in GROUPS]
    made = [Group(group.prompt, group.responses, own) for group, own in zip(GROUPS, with_margin, strict=True)]
    fitted = fit_text_baseline(made)
    weights = torch.tensor(fitted.weights_V, requires_grad=True)
    x, at, rows = torch.tensor(fitted.features(TEXTS).toarray()), 0, []
    for group in made:
        rows += [(at + c.better, at + c.worse, c.label, c.margin, 1 / len(group.comparisons)) for c in group.comparisons]
        at += len(group.responses)
    better, worse, label, margin, weight = (torch.tensor(each) for each in zip(*rows, strict=True))
    numbers = (each.double() for each in (label, margin, weight / weight.mean()))
    loss = text_baseline.INVERSE_PENALTY * preference_loss(x @ weights, better, worse, *numbers)[0] + weights.square().sum() / 2
    loss.backward()
    assert weights.grad is not None and float(weights.grad.abs().max()) < 0.02


def test_of_too_many_characters_it_learns_from_some_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_text_baseline(GROUPS)
    monkeypatch.setattr(text_baseline, "CHARACTERS", sum(map(len, TEXTS)) // 2)
    one, again, other = (fit_text_baseline(GROUPS, seed) for seed in (1, 1, 2))
    assert one.weights_V.tolist() == again.weights_V.tolist()
    assert len({tuple(each.scores(TEXTS[:20])) for each in (whole, one, other)}) == 3


def test_it_is_saved_without_code_and_what_is_damaged_is_told(tmp_path: Path) -> None:
    made = fit_text_baseline(GROUPS)
    made.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["text_baseline.safetensors"]
    unknown = ["", "an unknown text", "\x00 か゛\U0001f600"]
    again = read_text_baseline(tmp_path)
    assert again.scores([*TEXTS, *unknown]).tolist() == made.scores([*TEXTS, *unknown]).tolist()
    assert again.scores([]).shape == (0,) and again.scores([""])[0] == 0
    one, none = np.ones(1), np.array([np.nan])
    path = tmp_path / "text_baseline.safetensors"
    for numbers, metadata in (
        ({"idf": one, "weights": one}, None), ({"idf": one}, {"sequences": '["a"]'}),
        ({"idf": one, "weights": none}, {"sequences": '["a"]'}), ({"idf": one, "weights": one}, {"sequences": "[1]"}),
        ({"idf": one, "weights": one}, {"sequences": '["a", "a"]'}), ({"idf": one, "weights": one}, {"sequences": "{"}),
    ):  # fmt: skip
        save_file(numbers, path, metadata=metadata)
        with pytest.raises(DataError, match=r"text_baseline.safetensors: .* train the reward model again"):
            read_text_baseline(tmp_path)
    path.write_bytes(b"{}")
    with pytest.raises(DataError, match="cannot be read"):
        read_text_baseline(tmp_path)


def test_an_ensemble_is_the_sum_of_standardised_scores() -> None:
    made = fit_text_baseline(GROUPS)
    text = made.scores(TEXTS)
    network = np.random.default_rng(0).normal(3.0, 5.0, len(text))
    rows = [torch.tensor(network, dtype=torch.float32)[:, None]]
    for weight in (0.0, 0.25, 0.5):
        (summed,) = make_ensemble(made, weight, network, text).sum(rows, [[Answered("p", each) for each in TEXTS]])
        standard = (1 - weight) * network / network.std() + weight * text / text.std()
        unit = (1 - weight) * network.std() + weight * text.std()
        assert summed[:, 0].numpy() == pytest.approx(unit * standard, abs=1e-3)
    assert torch.equal(Ensemble(made, 1.0, 0.0).sum(rows, [TEXTS])[0], rows[0])
    for same in (0.0, 0.1):  # the deviation of 0.1s is 3e-17
        flat = make_ensemble(made, 0.5, 0 * network[:50] + same, text)
        assert 0 < flat.network < 10 and 0 < flat.text < 10
