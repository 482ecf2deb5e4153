from experiments import plots, results
from experiments.intervals import Interval
from experiments.results import Row


def rows(nats: float) -> list[Row]:
    return [
        Row(results.UNIGRAM, Interval(5.0, 4.9, 5.1), 3.0, Interval(5.0 - nats, 0.9, 1.1)),
        Row(results.TRAINED, Interval(nats, nats - 0.1, nats + 0.1), 2.5, None),
    ]


def test_table_shows_every_row_with_its_interval():
    text = results.table(rows(4.0), 7)
    assert "Test clients (7)" in text
    assert "| unigram of the training clients* | 5.000 [4.900, 5.100] | 3.000 | 1.000 [0.900, 1.100] |" in text
    assert "| after federated training | 4.000 [3.900, 4.100] | 2.500 |  |" in text


def test_seeds_table_ends_with_mean_and_standard_deviation():
    text = results.seeds_table([rows(4.0), rows(4.2)])
    assert "| 2 | 4.200 | 2.500 | 0.800 [0.900, 1.100] |" in text
    assert text.splitlines()[-3] == "| mean ± standard deviation | 4.100 ± 0.141 | 2.500 ± 0.000 | 0.900 ± 0.141 |"


def test_plots_are_written_as_png_and_svg(tmp_path):
    metrics = [{"round": 1, "evaluation": {}}, {"round": 2, "evaluation": {"validation_loss": 4.0}}]
    written = plots.loss_curve(tmp_path / "curve", metrics, {"bigram": 4.1})
    written += plots.repetitions(tmp_path / "plot", "gain", [Interval(0.1, 0.05, 0.12), Interval(0.2, 0.1, 0.3)])
    assert [path.name for path in written] == ["curve.png", "curve.svg", "plot.png", "plot.svg"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_loss_curve_accepts_loss_that_is_not_finite(tmp_path):
    metrics = [{"round": number, "evaluation": {"validation_loss": loss}} for number, loss in ((1, 4.0), (2, None))]
    assert plots.loss_curve(tmp_path / "curve", metrics, {})
