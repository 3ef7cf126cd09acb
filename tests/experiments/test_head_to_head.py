"""The report of head_to_head: one run next to decays for several lengths."""

import numpy as np

from experiments import table
from experiments.records import Header, Record
from experiments.reports import head_to_head
from experiments.studies.head_to_head import CONSTANT, SGD, STUDY


def record(arm, seed, losses, averages=None):
    history = [
        {"epoch": epoch, "validation_loss": loss}
        for epoch, loss in enumerate(losses, start=1)
    ]
    for line, average in zip(history, averages or (), strict=False):
        line["average_validation_loss"] = average
    return Record(arm, "resnet18", seed, {}, {"validation_loss": 0.0}, history)


def test_a_run_is_read_out_where_decays_end():
    """Decays end after 2 and 4 epochs; the best epoch, in the result, is not taken."""
    records = []
    for seed in range(5):
        shift = seed / 10
        means = [9.0, 2.5 + shift, 9.0, 1.3 + shift]
        records += [
            record("sgd-6-epochs", seed, [9.0, 2 + shift]),
            record(SGD, seed, [9.0, 9.0, 0.0, 1 + shift]),
            record(CONSTANT, seed, [9.0, 4 + shift, 9.0, 3 + shift], means),
        ]
    made = table.make(STUDY, Header(STUDY.name, "full", ["resnet18"], {}), records)
    own = head_to_head.at_lengths(made)
    assert own.models == ("resnet18, 2 epochs", "resnet18, 4 epochs")
    found = table.compare(own, [head_to_head.METRIC])
    means = {(row["model"], row["arm"]): row["mean"] for row in found.to_dicts()}
    expected = {
        ("resnet18, 2 epochs", "one"): 0.5,
        ("resnet18, 2 epochs", "last"): 2,
        ("resnet18, 4 epochs", "one"): 0.3,
        ("resnet18, 4 epochs", "last"): 2,
    }
    assert means.keys() == expected.keys()
    for place, mean in expected.items():
        np.testing.assert_allclose(means[place], mean, rtol=1e-6)
    assert set(found["n"]) == {5}
