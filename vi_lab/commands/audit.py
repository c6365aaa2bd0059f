"""`vi-lab audit`: the gradient lab on a trained or a fresh model; writes tables and figures."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from vi_lab.build import build, build_estimator, instantiate
from vi_lab.commands.launch import Abort, launch
from vi_lab.config import choices_of_groups, compose_job, plain, resolved
from vi_lab.console import Heading, Terminal, Words, make_console, print_tables
from vi_lab.errors import UserError, ViLabError, one_line
from vi_lab.runs.environment import environment
from vi_lab.runs.files import AUDIT_FILE, CONFIG_FILE, Status, write_csv, write_json, write_text
from vi_lab.runs.run import Run, load_run, load_weights
from vi_lab.schema import AUDIT, check_parts, has, latent_kind, marked
from vi_lab.training.process import prepare_process
from vi_lab.training.start import Source, center

if TYPE_CHECKING:
    from torch import nn

    from vi_lab.audit import Bench, Measurement, Reference
    from vi_lab.estimators import GradientEstimator


def main(argv: list[str]) -> int:
    """Audit the estimators that suit a model."""
    return launch("audit", task, argv)


def task(config: DictConfig) -> None:
    """What Hydra runs: one audit, with its own folder."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    status = Status(folder)
    try:
        status.write("running")
        write_json(folder / AUDIT_FILE, {"estimators": []})  # so that nothing takes the folder for that of a run
        finished = audit_model(config, folder, list(job.overrides.task))
        status.write("completed" if finished else "interrupted")
    except BaseException as error:
        status.write("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", one_line(error))
        raise Abort(error) from None
    if not finished:
        raise Abort(KeyboardInterrupt())


def run_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of the run that is audited, with this command's overrides of single values on top.

    Raises:
        UserError: the folder is none, or an override would make it another model.
    """
    if not isinstance(config.run, str):
        raise UserError("wanted one run folder")
    stored = load_run(config.run).config
    stored.data.download = False  # nothing is fetched on the word of somebody else's folder
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if not (has(key, AUDIT) or key.startswith("hydra")):
            allowed = ", ".join(name for name in marked(AUDIT) if "." not in name or not has(name.split(".")[0], AUDIT))
            raise UserError(f"{key} cannot change with run=: the run says what it was (only {allowed} may)")
        if key.startswith(("data.", "threads", "seed")):
            OmegaConf.update(stored, key, override.value())
    stored.accelerator = config.accelerator
    stored.audit, stored.run, stored.figures = config.audit, config.run, config.figures
    check_parts(plain(stored))
    return stored


def candidates(config: DictConfig) -> dict[str, dict]:
    """The estimators to audit, by name: their composed configs, with this model's latent. That of `estimator=` has the
    settings that it is given there.

    Raises:
        UserError: an unknown name, or one that cannot work with the latent.
    """
    latent = latent_kind(plain(config))
    runtime = HydraConfig.get().runtime
    own = runtime.choices.get("estimator") if config.run is None else None
    sources = runtime.config_sources
    config_dir = next((source.path for source in sources if source.provider == "command-line"), None)
    known = choices_of_groups("audit", config_dir)["estimator"]
    wanted = plain(config.audit.estimators)
    chosen = {}
    for name in wanted or known:
        if wanted and name not in known:
            raise UserError(f"audit.estimators: there is no {name} (one of {', '.join(known)})")
        shared = [f"temperature={config.temperature}", f"objective.beta={config.objective.get('beta', 1.0)}"]
        values = resolved(compose_job("train", [f"estimator={name}", *shared], config_dir))
        if name == own:
            values["estimator"] = plain(config.estimator)
        accepted = values["compatible_latents"]
        if latent is None or latent in accepted:
            chosen[name] = values
        elif wanted:
            raise UserError(
                f"audit.estimators: {name} does not work with a {latent} latent (but {', '.join(accepted)})"
            )
    return chosen


def audit_model(config: DictConfig, folder: Path, overrides: list[str]) -> bool:
    """Audit and write into `folder`; False where it was interrupted."""
    if config.run is not None:
        config = run_config(config, overrides)
    device, _ = prepare_process(config)
    terminal = make_console()
    datamodule, model = build(config)
    if config.run is not None:
        load_weights(model, Run(config.run).checkpoint())
    else:
        center(config, model, datamodule)
        if config.init_from:
            Source(config.init_from).fill(model, config)
    datamodule.setup()
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
    data = {"source": config.data.source, "sha256": datamodule.checksum()}
    write_json(folder / "environment.json", environment(shlex.join(["vi-lab", "audit", *overrides]), device, data))

    from vi_lab.audit import Bench

    loader = datamodule.loader("train")
    loader.batch_size = config.audit.batch
    x, *others = (images.to(device) for images, _ in islice(loader, 1 + config.audit.warmup))
    if config.audit.warmup and not others:
        terminal.say("learned baselines adapt on the images that are measured: audit.batch leaves no others")
    bench = Bench(model.to(device), x, config.objective.get("beta", 1.0), others)
    columns = (Words("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        audit = Audit(bench, config.audit, config.seed, terminal, progress)
        try:
            audit.measure_all(candidates(config))
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    if not audit.rows:
        if interrupted:
            raise KeyboardInterrupt("interrupted before the first estimator was measured")
        raise ViLabError("nothing to audit")
    audit.write(folder, interrupted)
    audit.show(interrupted)
    if config.figures:
        from vi_lab.figures.audit import write_figures

        write_figures(folder / "figures", audit.rows, audit.sweep)
    files = "audit.csv, audit.json and figures/" if config.figures else "audit.csv and audit.json"
    terminal.say(f"{files} are in {os.path.relpath(folder)}")
    return not interrupted


def _target(multi_sample: int, toy: bool) -> str:
    """The name of what is estimated: the ELBO, or of a toy problem its expected cost; or the bound with so many
    samples."""
    return f"bound of {multi_sample} samples" if multi_sample else "expected cost" if toy else "ELBO"


class Audit:
    """Estimators measured one after the other, on one bench and with the same noise.

    Args:
        settings: the config's `audit` node.
        seed: of the noise.
    """

    def __init__(self, bench: Bench, settings: DictConfig, seed: int, terminal: Terminal, progress: Progress) -> None:
        self.bench, self.settings, self.seed = bench, settings, seed
        self.terminal, self.progress = terminal, progress
        self.rows: list[dict[str, Any]] = []
        self.sweep: list[dict[str, Any]] = []
        self.references: dict[int, Reference] = {}
        self.toy = hasattr(bench.model, "expected")

    def measure_all(self, chosen: dict[str, dict]) -> None:
        """All estimators as configured, then those that have a temperature over the temperatures."""
        for name, values in chosen.items():
            try:
                self.measure(name, values)
            except ValueError as error:  # such as exact enumeration of a large space
                self.terminal.say(f"left out: {name}: {one_line(error)}")
        for name, values in chosen.items():
            if hasattr(build_estimator(values["estimator"]), "temperature"):
                for temperature in self.settings.temperatures:
                    self.measure_at(name, values, temperature)

    def measure(self, name: str, values: dict) -> None:
        """One estimator as it is configured: rows for the table."""
        estimator, objective = self._parts(values)
        measured = self._measure(name, estimator, objective, encoder=not self.toy)  # whose weights are the logits
        evaluations, milliseconds = self.bench.cost(estimator, objective)
        for group, numbers in measured.items():
            self.rows.append(
                {
                    "estimator": name,
                    "group": group,
                    "target": _target(_samples_of_bound(estimator), self.toy),
                    "unbiased": estimator.unbiased,
                    **numbers._asdict(),
                    "decoder_evaluations": evaluations,
                    "milliseconds": milliseconds,
                }
            )
        if not self.terminal.is_terminal:
            bias = measured["logits"].relative_bias
            self.terminal.say(f"{name}: relative bias {bias:.3g}, {milliseconds:.1f} ms")

    def measure_at(self, name: str, values: dict, temperature: float) -> None:
        """One estimator at a temperature: a row for the sweep.

        Raises:
            ValueError: it has none.
        """
        from vi_lab.estimators.base import temperature_of

        estimator, objective = self._parts(values)
        if temperature_of(estimator) is None:
            raise ValueError(f"{name} has no temperature")
        setattr(estimator, "temperature", temperature)  # noqa: B010 (declared by those that have one)
        measured = self._measure(f"{name} at temperature {temperature:g}", estimator, objective, encoder=False)
        self.sweep.append({"estimator": name, "temperature": temperature, **measured["logits"]._asdict()})

    def _parts(self, values: dict) -> tuple[GradientEstimator, nn.Module]:
        estimator = build_estimator(values["estimator"]).to(self.bench.x.device)
        return estimator, instantiate(OmegaConf.create({**values["objective"], "beta": self.bench.beta}))

    def _measure(
        self, label: str, estimator: GradientEstimator, objective: nn.Module, encoder: bool
    ) -> dict[str, Measurement]:
        from vi_lab.seeding import NOISE, PIXELS, seed_noise

        device, settings = self.bench.x.device, self.settings
        reference = self._reference(_samples_of_bound(estimator))
        seed_noise(device, self.seed, NOISE, 1)  # the same noise for all
        self.bench.warm_up(estimator, objective, settings.warmup)
        seed_noise(device, self.seed, PIXELS, 2)
        with self._task(label, settings.samples) as advance:
            return self.bench.measure(estimator, objective, reference, settings.samples, encoder, advance)

    def _reference(self, multi_sample: int) -> Reference:
        """Of the ELBO, or of the bound with so many samples; measured once."""
        if multi_sample not in self.references:
            from vi_lab.seeding import NOISE, seed_noise

            settings = self.settings
            task = self.progress.add_task(f"reference of the {_target(multi_sample, self.toy)}", total=None)

            def show(draws: int, error: float) -> None:
                wanted = draws * (error / settings.reference_error) ** 2  # as the error falls with the draws
                total = max(draws, min(wanted, settings.reference_draws))
                words = f"reference, relative error {error:.3f}"
                self.progress.update(task, description=words, completed=draws, total=round(total))

            seed_noise(self.bench.x.device, self.seed, NOISE, 0)
            self.references[multi_sample] = self.bench.reference(
                multi_sample,
                settings.max_states,
                settings.reference_error,
                settings.reference_draws,
                show,
            )
            self.progress.remove_task(task)
        return self.references[multi_sample]

    @contextmanager
    def _task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        task = self.progress.add_task(label, total=total)
        yield lambda draws: self.progress.advance(task, draws)
        self.progress.remove_task(task)

    def write(self, folder: Path, interrupted: bool) -> None:
        """audit.csv, audit_temperature.csv and audit.json."""
        write_csv(folder / "audit.csv", self.rows)
        if self.sweep:
            write_csv(folder / "audit_temperature.csv", self.sweep)
        references = {
            _target(multi, self.toy): {"how": reference.how, "relative_error": reference.error}
            for multi, reference in self.references.items()
        }
        content = {"interrupted": interrupted, "references": references}
        write_json(folder / AUDIT_FILE, {**content, "estimators": self.rows, "temperatures": self.sweep})

    def show(self, interrupted: bool) -> None:
        """The table, and what the estimators were held against."""
        title = f"gradient of the {'expected cost' if self.toy else 'negative ELBO'} with respect to q's logits"
        print_tables(self.terminal, HEADINGS, [(title, rows_of_logits(self.rows))], "audit.csv has them")
        for multi, reference in self.references.items():
            error = f", relative standard error {reference.error:.2g}" if reference.error else ""
            if reference.error > (wanted := self.settings.reference_error):
                error += f" (wanted {wanted:g}: raise audit.reference_draws={self.settings.reference_draws})"
            self.terminal.say(f"reference for the {_target(multi, self.toy)}: {reference.how}{error}")
        if interrupted:
            self.terminal.say("interrupted: what was measured is written")


def _samples_of_bound(estimator: GradientEstimator) -> int:
    return estimator.samples if estimator.multi_sample else 0


HEADINGS = (
    *(Heading("estimator", numeric=False), Heading("relative bias", priority=1), Heading("95 % interval", priority=3)),
    *(Heading("variance", priority=2), Heading("SNR", priority=6), Heading("cosine", priority=4), Heading("MSE")),
    *(Heading("decoder evals", priority=5), Heading("ms", priority=7)),
)


def rows_of_logits(rows: list[dict]) -> list[list[str]]:
    """The logits' rows as cells below `HEADINGS`, least error first."""
    chosen = [row for row in rows if row["group"] == "logits"]
    return [
        [
            row["estimator"] + (f" ({row['target']})" if row["target"].startswith("bound") else ""),
            f"{row['relative_bias']:.3f}",
            f"{row['relative_bias_low']:.3f} to {row['relative_bias_high']:.3f}",
            f"{row['variance']:.3g}",
            f"{row['signal_to_noise']:.3g}",
            f"{row['cosine']:.3f}",
            f"{row['mean_squared_error']:.3g}",
            f"{row['decoder_evaluations']:.0f}",
            f"{row['milliseconds']:.1f}",
        ]
        for row in sorted(chosen, key=lambda row: (row["target"], row["mean_squared_error"]))
    ]
