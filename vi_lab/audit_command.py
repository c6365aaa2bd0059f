"""`vi-lab audit`: the gradient lab on a trained or a fresh model; writes tables and figures."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from vi_lab.config import CONFIG_DIR, compose_job, plain, resolved
from vi_lab.errors import UserError, ViLabError, one_line
from vi_lab.runs import Run, load_run, load_weights
from vi_lab.snapshot import Status, environment, write_csv, write_json, write_text
from vi_lab.train import Abort, build, build_estimator, instantiate, launch, prepare_process


def main(argv: list[str]) -> int:
    return launch("audit", task, argv)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="audit")
def task(config: DictConfig) -> None:
    """One audit, with its own folder."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    status = Status(folder)
    try:
        status.write("running")
        finished = run(config, folder, list(job.overrides.task))
        status.write("completed" if finished else "interrupted")
    except BaseException as error:
        status.write("failed", one_line(error))
        raise Abort(error) from None
    if not finished:
        raise Abort(KeyboardInterrupt())


def run_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of the run that is audited, with this command's overrides of single values on top.

    Raises:
        UserError: the folder is none, or an override would make it another model.
    """
    stored = load_run(config.run).config
    stored.data.download = False  # nothing is fetched on the word of somebody else's folder
    allowed = ("audit", "run", "data.root", "data.download", "threads", "accelerator", "seed", "name", "debug", "hydra")
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if not key.startswith(allowed):
            raise UserError(f"{key} cannot change with run=: the run says what it was (only {', '.join(allowed)} may)")
        if key.startswith(("data.", "threads", "seed")):
            OmegaConf.update(stored, key, override.value())
    stored.accelerator = config.accelerator
    stored.audit, stored.run = config.audit, config.run
    return stored


def candidates(config: DictConfig) -> dict[str, dict]:
    """The estimators to audit, by name: their composed configs, with this model's latent.

    Raises:
        UserError: an unknown name, or one that cannot work with the latent.
    """
    latent = config.latent._target_.rpartition(".")[2].lower()
    shipped = sorted(path.stem for path in (CONFIG_DIR / "estimator").glob("*.yaml"))
    wanted = plain(config.audit.estimators)
    chosen = {}
    for name in wanted or shipped:
        if wanted and name not in shipped:
            raise UserError(f"audit.estimators: there is no {name} (one of {', '.join(shipped)})")
        values = resolved(compose_job("train", [f"estimator={name}", f"temperature={config.temperature}"]))
        if latent in values["estimator"]["latents"]:
            chosen[name] = values
        elif wanted:
            accepted = ", ".join(values["estimator"]["latents"])
            raise UserError(f"audit.estimators: {name} does not work with a {latent} latent (but {accepted})")
    return chosen


def run(config: DictConfig, folder: Path, overrides: list[str]) -> bool:
    """Audit and write into `folder`; False where it was interrupted."""
    if config.run is not None:
        config = run_config(config, overrides)
    device_name, _ = prepare_process(config)

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from vi_lab.audit import Bench
    from vi_lab.seeding import NOISE, PIXELS, seed_noise

    console = Console() if sys.stdout.isatty() else Console(width=140)
    settings = config.audit
    datamodule, model, _ = build(config)
    if config.run is not None:
        load_weights(model, Run(config.run).checkpoint())
    datamodule.setup()
    device = torch.device(device_name)
    model.to(device)
    write_text(folder / "config_resolved.yaml", OmegaConf.to_yaml(config, resolve=True))
    data = {"source": config.data.source, "sha256": datamodule.checksum()}
    command = shlex.join(["vi-lab", "audit", *overrides])
    write_json(folder / "environment.json", environment(command, device_name, data))

    loader = datamodule.loader("train")
    loader.batch_size = settings.batch
    x = next(iter(loader))[0].to(device)
    bench = Bench(model, x, config.objective.get("beta", 1.0))
    rows: list[dict[str, Any]] = []
    sweep: list[dict[str, Any]] = []
    references: dict[int, Any] = {}
    interrupted = False
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def measure(name: str, values: dict, temperature: float | None = None) -> None:
            estimator = build_estimator(values["estimator"]).to(device)
            objective = instantiate(OmegaConf.create({**values["objective"], "beta": bench.beta}))
            if temperature is not None:
                estimator.temperature.fill_(temperature)
            multi = estimator.samples if estimator.multi_sample else 0
            if multi not in references:
                task = progress.add_task(f"reference{f' of the {multi}-sample bound' if multi else ''}", total=None)
                seed_noise(device, config.seed, NOISE, 0)
                references[multi] = bench.reference(
                    multi,
                    settings.max_states,
                    settings.reference_error,
                    settings.reference_draws,
                    lambda error: progress.update(task, description=f"reference, relative error {error:.3f}"),
                )
                progress.remove_task(task)
            seed_noise(device, config.seed, NOISE, 1)  # the same noise for all
            bench.warm_up(estimator, objective, settings.warmup)
            seed_noise(device, config.seed, PIXELS, 2)
            label = name if temperature is None else f"{name} at temperature {temperature:g}"
            task = progress.add_task(label, total=settings.samples)
            measured = bench.measure(
                estimator,
                objective,
                references[multi],
                settings.samples,
                encoder=temperature is None,
                progress=lambda n: progress.advance(task, n),
            )
            progress.remove_task(task)
            if temperature is None:
                evaluations, milliseconds = bench.cost(estimator, objective)
                for group, values_of in measured.items():
                    rows.append(
                        {
                            "estimator": name,
                            "group": group,
                            "target": f"bound of {multi} samples" if multi else "ELBO",
                            "unbiased": estimator.unbiased,
                            **values_of._asdict(),
                            "decoder_evaluations": evaluations,
                            "milliseconds": milliseconds,
                        }
                    )
                if not console.is_terminal:
                    bias = measured["logits"].relative_bias
                    console.print(f"{name}: relative bias {bias:.3g}, {milliseconds:.1f} ms", highlight=False)
            else:
                sweep.append({"estimator": name, "temperature": temperature, **measured["logits"]._asdict()})

        try:
            chosen = candidates(config)
            for name, values in chosen.items():
                try:
                    measure(name, values)
                except ValueError as error:  # such as exact enumeration of a large space
                    console.print(f"left out: {name}: {one_line(error)}", highlight=False, markup=False)
            for name, values in chosen.items():
                if hasattr(build_estimator(values["estimator"]), "temperature"):
                    for temperature in settings.temperatures:
                        measure(name, values, temperature)
        except KeyboardInterrupt:
            interrupted = True
    if not rows:
        raise ViLabError("interrupted before the first estimator was measured" if interrupted else "nothing to audit")
    _write(folder, rows, sweep, references, interrupted)
    console.print(table(rows))
    for multi, reference in references.items():
        target = f"bound of {multi} samples" if multi else "ELBO"
        error = f", relative standard error {reference.error:.2g}" if reference.error else ""
        console.print(f"reference for the {target}: {reference.how}{error}", highlight=False)
    if interrupted:
        console.print("interrupted: what was measured is written", highlight=False)
    from vi_lab.plots import draw_audit

    draw_audit(folder / "figures", rows, sweep)
    console.print(f"audit.csv, audit.json and figures/ are in {os.path.relpath(folder)}", highlight=False)
    return not interrupted


def _write(folder: Path, rows: list[dict], sweep: list[dict], references: dict, interrupted: bool) -> None:
    write_csv(folder / "audit.csv", rows)
    if sweep:
        write_csv(folder / "audit_temperature.csv", sweep)
    write_json(
        folder / "audit.json",
        {
            "interrupted": interrupted,
            "references": {
                (f"bound of {multi} samples" if multi else "ELBO"): {"how": r.how, "relative_error": r.error}
                for multi, r in references.items()
            },
            "estimators": rows,
            "temperatures": sweep,
        },
    )


def table(rows: list[dict]) -> Any:
    """The logits' rows, least error first."""
    from rich.table import Table

    result = Table(title="gradient of the negative ELBO with respect to q's logits", title_justify="left")
    result.add_column("estimator", no_wrap=True)
    for heading in ("relative bias", "95 % interval", "variance", "SNR", "cosine", "MSE", "decoder evals", "ms"):
        result.add_column(heading, justify="right", no_wrap=True)
    chosen = [row for row in rows if row["group"] == "logits"]
    for row in sorted(chosen, key=lambda row: (row["target"], row["mean_squared_error"])):
        target = "" if row["target"] == "ELBO" else f" [dim]({row['target']})[/]"
        result.add_row(
            f"{row['estimator']}{target}",
            f"{row['relative_bias']:.3f}",
            f"{row['relative_bias_low']:.3f} to {row['relative_bias_high']:.3f}",
            f"{row['variance']:.3g}",
            f"{row['signal_to_noise']:.3g}",
            f"{row['cosine']:.3f}",
            f"{row['mean_squared_error']:.3g}",
            f"{row['decoder_evaluations']:.0f}",
            f"{row['milliseconds']:.1f}",
        )
    return result
