"""A target and drafters of a few weights, in the folders that `fedspeak reproduce drafters` writes."""

from pathlib import Path

from experiments import config_file
from experiments.reproduce import drafters
from experiments.runs import RunFolder, save_weights, write_json
from models.presets import preset
from tests.models import exported

SPEAKERS = [("a/X", ["the king and the king", "another"]), ("b/Y", ["in the night " * 5]), ("b/Z", ["then"])]


def write(folder: Path) -> None:
    words = exported.vocabulary()
    for number, (name, changes) in enumerate(drafters.MODELS.items()):
        run = RunFolder(folder / name)
        config = config_file.load("target", ("clients.sequence_length=6", *changes))
        run.create(config)
        small = {"blocks": 1, "embedding": 8, "heads": 2, "feed_forward": 12}
        model = (
            preset("tiny", words.size, embedding=8, units=10)
            if name == "si-cifg"
            else preset(config.model.preset or "", words.size, **small)
        )
        save_weights(run.weights, {n: 2 * w for n, w in model.init(number).items()})
        write_json(run.model, model.config())
        words.save(run.vocabulary)
