"""Defines `fedspeak reproduce blockwise`: what refining the drafts of prediction heads gains, text by text.

The study follows Kim et al., "Exploring and improving drafts in blockwise parallel decoding"
(https://arxiv.org/abs/2404.09221), with heads that `fedspeak pretrain --heads-on` trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.display import ConsoleDisplay
from experiments.partial_results import digest, resume
from experiments.provenance import command_line, versions
from experiments.runs import RunFolder, load_trained, write_json
from privacy.files import write_public

_PLACES, _BLOCKS, _ROWS = 64, 12, 16
_CONTEXT = 384
_MIN_COUNTS = {2: (1,), 4: (1, 2, 4)}
_TUNED = 3
"""One in this number of prompts is for the choice of α."""
_TEMPERATURES = (1.0, 0.6)
_ALPHA_1 = {"2-gram": 1.0, "neural": 1.0}
_TIMED_TEXTS, _TIMED = ("Macbeth", "Twelfth Night", "Python's manual", "Python source"), 4


@click.command("blockwise")
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    default=Path("runs/heads"),
    show_default=True,
    help="Folder of a model with prediction heads, which fedspeak pretrain --heads-on writes.",
)
@click.option(
    "--rescorer",
    type=click.Path(path_type=Path),
    default=Path("runs/drafters/transformer"),
    show_default=True,
    help="Folder of the small model that refines drafts, and drafts for the target beside it.",
)
@click.option(
    "--public",
    "public",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Public text from which the n-gram models are learned. May be repeated. Default: that of the small model.",
)
@click.option(
    "--text",
    "texts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Text file from which prompts are taken. May be repeated. Default: ten texts and more.",
)
@click.option(
    "--prompts", type=click.IntRange(_TUNED), default=48, show_default=True, help="Number of prompts from each text."
)
@click.option("--speed/--no-speed", default=True, show_default=True, help="Whether to measure the times too.")
@options.seed
@options.output("runs/blockwise", "the tables, the plot and the results")
def blockwise(
    target: Path,
    rescorer: Path,
    public: tuple[Path, ...],
    texts: tuple[Path, ...],
    prompts: int,
    speed: bool,
    seed: int,
    output: Path,
) -> None:
    """Measure the tokens per call of blockwise decoding with refined drafts, and its speed.

    For each text, a third of the prompts chooses the weight of each rescorer, and the others measure. An interrupted
    study goes on where it was, with the same --output.
    """
    extras.require("federated")
    for folder in (target, rescorer):
        RunFolder(folder).require_trained()
    show = ConsoleDisplay()
    from experiments import plots
    from experiments.reproduce import blockwise_study, blockwise_tables, blockwise_texts
    from experiments.reproduce.drafters import write_bible
    from models.heads import HeadedLanguageModel

    model, weights, vocabulary = load_trained(target)
    if not isinstance(model, HeadedLanguageModel) or model.prediction_heads < 3:
        raise ValueError(
            f"--target {target}: has fewer than 3 prediction heads: train them with fedspeak pretrain --heads-on"
        )
    output.mkdir(parents=True, exist_ok=True)
    bible = None if texts else write_bible(output / "bible.txt", show)
    starts = blockwise_texts.choose(vocabulary, texts, bible, prompts, seed)
    short = next((name for name, rows in starts.items() if len(rows) < _TUNED), None)
    if short is not None:
        raise ValueError(
            f"--text {short}: has text for {len(starts[short])} prompts, and {_TUNED} are needed: give a longer one"
        )
    study, path = Study((model, weights, vocabulary), rescorer, public, show), output / "metrics.json"
    asked = {"versions": versions(), "seed": seed, "ngrams": study.ngram_sizes}
    small = digest(load_trained(rescorer)[1], None)
    asked["digest"] = digest(weights, {"rescorer": small, "vocabulary": vocabulary.digest, "prompts": starts})
    found = resume(path, asked, {"rows": []})
    found["command"] = command_line()
    # First, so that the machine need be quiet at the beginning only.
    if speed and "files" not in found:
        found |= study.time({name: rows for name, rows in starts.items() if texts or name in _TIMED_TEXTS}, seed)
        write_json(path, found)
    known = {row["text"] for row in found["rows"]}
    for name, rows in starts.items():
        if name not in known:
            found["rows"].append(study.measure(name, rows, seed))
            write_json(path, found)
    write_json(path, found)
    plots.refinements(output / "plot", found["rows"], blockwise_study.PLAIN)
    table = blockwise_tables.format_tables(found)
    write_public(output / "table.md", table.encode())
    click.echo(table, nl=False)


class Study:
    """Holds a target with heads and what refines their drafts.

    Args:
      target: model, weights and vocabulary.
      rescorer: folder of the small model.
      public: public text for the n-gram models; empty for that of the small model's config.
      show: display for progress.

    Raises:
      OSError, ValueError: a model or text cannot be read or does not fit; one line.
    """

    def __init__(self, target: Any, rescorer: Path, public: Sequence[Path], show: Any) -> None:
        from experiments import ngram_learning
        from experiments.drafting import load_drafter
        from experiments.reproduce.blockwise_study import HEADS, Rescorers
        from models.decoding.katz_tables import KatzTables
        from models.decoding.shared_vocabulary import SharedVocabularyDrafter
        from models.katz import KatzModel
        from models.ngram import MAX_ENTRIES

        self._model, self._weights, vocabulary = target
        self._heads = [h for h in HEADS if h <= self._model.prediction_heads] or [self._model.prediction_heads]
        self._show = show
        self._katz: dict[int, KatzModel] = {}
        for order in (2, 4):
            show.note(f"learning the {order}-gram model …")
            limits = _MIN_COUNTS[order]
            learned, _ = ngram_learning.learn(rescorer, tuple(public), order, MAX_ENTRIES, None, limits, "katz")
            assert isinstance(learned, KatzModel)
            self._katz[order] = learned
        drafter = load_drafter(str(rescorer), self._model, self._weights, vocabulary, _CONTEXT)
        if isinstance(drafter, SharedVocabularyDrafter):
            raise ValueError(
                f"--rescorer {rescorer}: has another vocabulary than the target: give a model with the same"
            )
        self._rescorers = Rescorers({order: KatzTables(model) for order, model in self._katz.items()}, drafter)

    @property
    def ngram_sizes(self) -> dict[str, dict[str, int]]:
        """Returns number of n-grams and bytes of the tables of each n-gram model."""
        return {
            f"{order}-gram": {"entries": len(self._katz[order].tokens), "bytes": tables.nbytes}
            for order, tables in self._rescorers.ngrams.items()
        }

    def measure(self, name: str, prompts: Sequence[Sequence[int]], seed: int) -> dict[str, Any]:
        """Returns the results of one text: those of `blockwise_study.measure`, and "sampled" tokens per call."""
        from experiments.display import no_notices
        from experiments.reproduce import blockwise_study

        self._show.note(f"{name}: greedy texts …")
        lattices = self._write_texts(prompts)
        tuned = max(len(prompts) // _TUNED, 1)
        alphas = blockwise_study.tune(lattices.take(slice(0, tuned)), self._rescorers)
        self._show.note(f"{name}: drafts, α = {', '.join(f'{value:g} ({key})' for key, value in alphas.items())} …")
        rest = lattices.take(slice(tuned, None))
        with no_notices():  # of TensorFlow, that graphs are built for each text
            row = {"text": name, **blockwise_study.measure(rest, self._rescorers, alphas, self._heads)}
        row["sampled"] = self._sample(np.array(prompts[tuned:], np.int32), alphas, seed)
        return row

    def _write_texts(self, prompts: Sequence[Sequence[int]]) -> Any:
        from experiments.reproduce import blockwise_drafts, blockwise_study
        from models.heads import HeadedLanguageModel

        model = HeadedLanguageModel(self._model.base, self._heads[-1])
        rows = min(_ROWS, len(prompts))
        return blockwise_drafts.write_texts(model, self._weights, prompts, _PLACES, blockwise_study.TOP_K, rows)

    def _sample(self, prompts: Any, alphas: dict[str, float], seed: int) -> list[dict[str, Any]]:
        """Returns tokens per call above temperature 0, by the decoder itself."""
        from experiments.decoding_modes import Mode
        from experiments.display import no_notices
        from experiments.intervals import mean_interval
        from experiments.reproduce.blockwise_study import PLAIN, TOP_K
        from experiments.reproduce.tree_efficiency import Decoder
        from models.decoding.draft_options import DraftOptions
        from models.decoding.heads_drafter import HeadsDrafter
        from models.decoding.katz_drafter import KatzDrafter

        mode = Mode("blockwise", DraftOptions(self._heads[-1] - 1))
        model, rows = self._model.fit(prompts.shape[1] + (_BLOCKS + 1) * (self._heads[-1] + 1)), []
        ways = self._drafters(alphas) | {
            "heads alone, top 16": HeadsDrafter(KatzDrafter(self._katz[2]), TOP_K, 0.0),
            **{f"{name}, α = 1": drafter for name, drafter in self._drafters(_ALPHA_1).items() if name != PLAIN},
        }
        for way, drafter in ways.items():
            with no_notices():
                decoder = Decoder(mode, model, self._weights, drafter, _BLOCKS)
                for temperature in _TEMPERATURES:
                    counts = decoder.draw(prompts, temperature, seed).sum(axis=1).astype(np.float64)
                    tokens = mean_interval(counts, np.full(len(counts), _BLOCKS))._asdict()
                    rows.append({"drafts": way, "temperature": temperature, "tokens": tokens})
        return rows

    def _drafters(self, alphas: dict[str, float]) -> dict[str, Any]:
        """Returns the drafters of one draft, by the names of `blockwise_study`."""
        from experiments.reproduce.blockwise_study import PLAIN, TOP_K
        from models.decoding.heads_drafter import HeadsDrafter
        from models.decoding.katz_drafter import KatzDrafter

        return {
            PLAIN: HeadsDrafter(),
            "2-gram": HeadsDrafter(KatzDrafter(self._katz[2]), TOP_K, alphas["2-gram"]),
            "neural": HeadsDrafter(self._rescorers.model, TOP_K, alphas["neural"]),
        }

    def time(self, starts: dict[str, list[list[int]]], seed: int) -> dict[str, Any]:
        """Returns the speed of decodings, from prompts of some texts, in "files" and in "tensorflow"."""
        from experiments.reproduce import blockwise_study
        from experiments.reproduce.blockwise_speed import time_files, time_generators

        tuned = [prompt for rows in starts.values() for prompt in rows[: min(max(len(rows) // _TUNED, 1), _TIMED)]]
        self._show.note("choosing α for the files to time …")
        alphas = blockwise_study.tune(self._write_texts(tuned), self._rescorers)
        target, ways = (self._model, self._weights), self._timed(alphas)
        chosen = {name: rows[-_TIMED:] for name, rows in starts.items()}
        return {
            "files": time_files(*target, ways, chosen, (0.0, *_TEMPERATURES), seed, self._show),
            "tensorflow": time_generators(*target, ways, chosen, 0.0, seed, self._show),
        }

    def _timed(self, alphas: dict[str, float]) -> list[Any]:
        """Returns the decodings to time: heads alone, refined with α = 1 and α, and the rescorers as drafters."""
        from experiments.decoding_modes import Mode, parse
        from experiments.reproduce.blockwise_speed import Timed
        from experiments.reproduce.blockwise_study import PATHS, PLAIN, TOP_K
        from models.decoding.draft_options import DraftOptions
        from models.decoding.katz_drafter import KatzDrafter
        from models.decoding.lattice_drafter import LatticeDrafter

        drafters = self._drafters(alphas)
        middle = self._heads[len(self._heads) // 2]
        blocks = {heads: Mode("blockwise", DraftOptions(heads - 1)) for heads in self._heads}
        several = Mode("blockwise", DraftOptions(middle - 1, paths=PATHS[0]))
        lattice = LatticeDrafter(self._rescorers.ngrams[2], TOP_K, alphas["2-gram"])
        refined = [
            (f"{name}, α = {own[name]:g}", self._drafters(own)[name]) for own in (_ALPHA_1, alphas) for name in _ALPHA_1
        ]
        return [
            *(Timed(f"{PLAIN}, h = {heads}", mode, drafters[PLAIN]) for heads, mode in blocks.items()),
            *(Timed(f"{name}, h = {middle}", blocks[middle], drafter) for name, drafter in dict(refined).items()),
            Timed(f"2-gram, α = {alphas['2-gram']:g}, {PATHS[0]} paths, h = {middle}", several, lattice),
            *(Timed(f"block:{n}, small model", parse(f"block:{n}"), self._rescorers.model) for n in (2, 4)),
            Timed("block:2, 4-gram", parse("block:2"), KatzDrafter(self._katz[4])),
        ]
