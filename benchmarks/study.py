"""Every system of the papers at one budget on real images: trained, measured by one chain of metrics, in one table.

    python -m benchmarks.study --data=mnist                        # all that is missing; some days on two cores
    python -m benchmarks.study --data=mnist --only psld vp --seeds 0 1
    python -m benchmarks.study --data=fashion_mnist --stage=train # only the trainings; and measure, only the rest
    python -m benchmarks.study --only psld cld --ways unipc,10 sscs,50 likelihood   # only some of the measurements
    python -m benchmarks.study --only psld --afresh               # trains what comes with it, too
    python -m benchmarks.study --data=cifar10                     # PSLD and VP, a night each
    python -m benchmarks.study --report                           # the tables again
    python -m benchmarks.study --pictures                         # and the pictures of docs/results.md

Each training is `python -m sgmjax.train --config=configs/study.py:SYSTEM,DATA`, of CIFAR-10 `configs/cifar_small.py`,
each measurement `python -m sgmjax.evaluate`, as a user would call them; what was stopped goes on, and nothing is made
twice. The features are those of `configs/features_mnist.py`, trained on the same data.

--samples images are drawn with 10 and 50 evaluations by UniPC of order 3 on the grid "auto", with 50 and 200 by the
sampler and on the grid that the system's paper takes, and by an adaptive ODE; the first two --draws times. Beside each
number stands that of as many held-out images. Bits/dim are of --likelihood held-out images.

Runs lie in --runs. What is kept of each in benchmarks/study/: its configuration, metrics, final grid, and the averaged
network in half precision, so that the same networks can be measured without training them; those of runs that come with
sgmjax are in sgmjax/zoo.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.commands import call
from benchmarks.rows import read, write
from benchmarks.study_page import HERE, KEPT, NUMBERS, draw_pictures, show
from configs import cifar_small, study
from sgmjax._cli import read_config
from sgmjax._files import zoo
from sgmjax.training.tensors import folder_of, read_metadata

FILE = "run.safetensors"
LATENT = ("lsgm", "lsgm_psld")
UNIPC = {"sampler": "unipc", "options": "order=3", "grid": "auto", "denoise": "tweedie"}
SSCS = {"sampler": "sscs", "grid": "quadratic"}
OWN = {  # those that are not here are of data in phase space, and take SSCS
    "ncsnv2": {"sampler": "annealed_langevin", "grid": "levels"},
    "vp": {"sampler": "em", "grid": "uniform"},
    "subvp": {"sampler": "em", "grid": "uniform"},
    "ve": {"sampler": "pc", "grid": "uniform"},
    "edm": {"sampler": "edm", "grid": "rho", "denoise": "tweedie"},
    "lsgm": {"sampler": "em", "grid": "uniform"},
    "lsgm_psld": SSCS,
}
EM = {"sampler": "em", "grid": "quadratic"}
ODE = {"sampler": "ode", "rtol": "1e-4", "atol": "1e-4"}
DATA = {**study.DATA, "cifar10": cifar_small.NIGHT["data"]}
METRICS = "fd,kid,pr,balance,frechet"
SHOWN = ("unipc, 50", 0)  # the way whose samples are shown beside their nearest training images


def ways(system: str) -> dict[str, dict[str, str]]:
    """How the samples of a system are drawn: flags of `sgmjax.evaluate` by name."""
    own = OWN.get(system, SSCS)
    found = {f"unipc, {n}": UNIPC | {"steps": str(n)} for n in (10, 50)}
    for n in (50, 200):
        if system == "ncsnv2":  # five steps at each of ten or forty of its levels
            more = {"steps": str(n + 1), "options": "steps_per_level=5,start=uniform"}
        else:
            more = {"steps": str(n)}
        found[f"{own['sampler']}, {n}"] = own | more
    if system == "edm":  # one denoiser, every process
        found |= {f"unipc_as_psld, {n}": UNIPC | {"process": "psld", "steps": str(n)} for n in (10, 50)}
    if system not in OWN:
        found["em, 50"] = EM | {"steps": "50"}
    return found | {"ode": ODE}


def trainings(data: str) -> dict[str, str]:
    """The configuration of each system that is trained on these data."""
    if data == "cifar10":
        return {system: f"configs/cifar_small.py:{system}" for system in cifar_small.PROCESSES}
    return {system: f"configs/study.py:{system},{data}" for system in study.SYSTEMS}


class Study:
    FEATURES: tuple[str, ...] = ()  # more words for the training of the features

    def __init__(self, flags: argparse.Namespace, data: str):
        self.flags, self.data = flags, data
        self.runs = flags.runs / data

    def location(self) -> list[str]:
        if self.flags.data_dir and "data_dir" not in DATA[self.data]:
            return [f"--config.data.data_dir={self.flags.data_dir}"]
        return []

    def kept(self, run: str) -> Path:
        """Where what is kept of a run lies. run: its folder's name."""
        return KEPT / self.data / run

    def stored(self, run: str) -> Path | None:
        """The file of a network that needs no training here, None: there is none. run: its folder's name."""
        file = self.kept(run) / FILE
        found = file if file.is_file() else zoo().get(f"{run.removesuffix('_0')}_{self.data}")
        return None if self.flags.afresh else found

    def keep(self, run: str) -> Path:
        """Keeps the network of a finished run; where."""
        kept = self.kept(run) / FILE
        kept.parent.mkdir(parents=True, exist_ok=True)
        call("export_checkpoint", f"--workdir={self.runs / run}", "--format=safetensors", "--half", f"--out={kept}")
        return kept

    def train(self, system: str, seed: int) -> Path:
        """The folder of a finished run, or the file of one whose network is kept."""
        run = f"{system}_{seed}"
        folder, stored, kept = self.runs / run, self.stored(run), self.kept(run)
        name = trainings(self.data)[system]
        steps = self.flags.steps or read_config(name, ())[0].train.steps
        if not (folder / "checkpoints" / str(steps)).is_dir():
            if stored and int(read_metadata(stored)["step"]) == steps:
                self.runs.mkdir(parents=True, exist_ok=True)  # what is made of it lies beside it, not here
                return Path(shutil.copyfile(stored, folder.with_suffix(".safetensors")))
            call(
                "train", f"--config={name}", f"--workdir={folder}",
                f"--config.seed={seed}", f"--config.train.steps={steps}", *self.location(),
            )  # fmt: skip
        elif stored:
            return folder
        self.keep(run)
        shutil.copyfile(folder / "metrics.jsonl", kept / "metrics.jsonl")
        shutil.copyfile(folder / "samples" / "final.png", kept / "final.png")
        settings = json.loads((folder / "config.json").read_text())
        settings["config"]["data"]["data_dir"] = DATA[self.data].get("data_dir")  # not where they lie here
        (kept / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        return folder

    def features(self) -> Path:
        """The file of the network whose features are compared."""
        folder, stored = self.runs / "features", self.stored("features")
        if stored:
            return stored
        settings = folder / "config.json"
        steps = json.loads(settings.read_text())["config"]["train"]["steps"] if settings.is_file() else None
        if not (folder / "checkpoints" / str(steps)).is_dir():
            words = [f"--config.data.{key}={value}" for key, value in DATA[self.data].items()]
            words += [*self.FEATURES, *self.location()]
            call("train", "--config=configs/features_mnist.py", f"--workdir={folder}", *words)
        return self.keep("features")

    def measure(self, system: str, seed: int, folder: Path, features: Path) -> None:
        network = read_metadata(features)["sha256"][:8]
        rows = read(self.flags.out)
        have = {_key(row) for row in rows if row.get("features") == network or row["way"] == "likelihood"}
        for way, flags in ways(system).items():
            for draw in range(self.flags.draws if way.startswith("unipc") else 1):
                row = {"data": self.data, "system": system, "seed": seed, "way": way, "draw": draw}
                if way not in self.flags.ways or _key(row) in have:
                    continue
                words = [f"--workdir={folder}", f"--num={self.flags.samples}", f"--seed={draw}", "--batch_size=100"]
                words += [f"--{key}={value}" for key, value in flags.items()]
                shown = SHOWN == (way, draw)
                wanted = [f"--metrics={METRICS}" + ",neighbours" * shown, *["--nearest=3"] * shown]
                call("evaluate", *words, *wanted, f"--features={features}")
                found, _ = self._report(folder)
                first = found["metrics"]["fd"]
                row |= {
                    "features": network, "step": found["step"], "num": self.flags.samples, "nfe": first["nfe"],
                    "seconds": round(1000 * first["seconds_per_sample"], 1),
                }  # fmt: skip
                row |= _numbers(found)
                call("evaluate", *words, "--metrics=mind", "--features=pixels")
                found, picture = self._report(folder)
                row |= _numbers(found)
                kept = self.kept(f"{system}_{seed}")
                kept.mkdir(parents=True, exist_ok=True)
                if draw == 0:  # the others are of other noise
                    shutil.copyfile(picture, kept / f"{way.replace(', ', '_')}.png")
                if shown:
                    shutil.copyfile(self._newest(folder, "neighbours_step*.png"), kept / "neighbours.png")
                self._record(row)
        row = {"data": self.data, "system": system, "seed": seed, "way": "likelihood", "draw": 0}
        if "likelihood" in self.flags.ways and _key(row) not in have:
            name = "nelbo" if system in LATENT else "bpd"
            words = ["--rtol=1e-4", "--atol=1e-4", f"--num={self.flags.likelihood}", "--batch_size=100"]
            call("evaluate", f"--workdir={folder}", f"--metrics={name}", *words)
            found, _ = self._report(folder)
            row |= {"step": found["step"], "num": self.flags.likelihood}
            record = found["metrics"][name]
            row |= {key: round(one["mean"], 4) for key, one in record["results"].items()}
            row["error"] = round(record["results"]["ode"]["standard_error"], 4)
            self._record(row | {"nfe": record["nfe"]["mean"]})

    def _report(self, folder: Path) -> tuple[dict[str, Any], Path]:
        """The newest one, and its picture, which another process has in a file of its own."""
        newest = self._newest(folder, "report_step*.json")
        return json.loads(newest.read_text()), newest.with_suffix(".png")

    def _newest(self, folder: Path, pattern: str) -> Path:
        found = (Path(path) for path in (folder_of(folder) / "metrics").glob(pattern))
        return max(found, key=lambda path: path.stat().st_mtime)

    def _record(self, row: dict[str, Any]) -> None:
        rows = [*(one for one in read(self.flags.out) if _key(one) != _key(row)), row]
        write(self.flags.out, rows)
        show(rows, self.flags.out)
        print(json.dumps(row), flush=True)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("data", "system", "seed", "way", "draw"))


def _numbers(report: dict[str, Any]) -> dict[str, float]:
    found = report["numbers"]
    return {key: float(f"{found[key]:.5g}") for name in NUMBERS for key in (name, f"{name}_floor") if key in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DATA), default="mnist")
    parser.add_argument("--only", nargs="*", metavar="SYSTEM", help="default: all")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--stage", choices=["train", "measure", "both"], default="both")
    parser.add_argument("--steps", type=int, help="of each training, in place of the configuration's")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--ways", nargs="*", help="only these measurements: unipc,10 sscs,50 ode likelihood ...")
    parser.add_argument("--draws", type=int, default=2, help="sets of samples, of unipc")
    parser.add_argument("--likelihood", type=int, default=200, help="held-out images")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--data-dir", help="of TFDS")
    parser.add_argument("--afresh", action="store_true", help="train what is kept or comes with sgmjax, too")
    parser.add_argument("--out", type=Path, default=HERE / "study.json")
    parser.add_argument("--report", action="store_true", help="only the tables")
    parser.add_argument("--pictures", action="store_true", help="only the pictures of docs/results.md")
    flags = parser.parse_args()
    if flags.pictures:
        return draw_pictures()
    there = list(trainings(flags.data))
    if unknown := set(flags.only or ()).difference(there):
        parser.error(f"--only: no {', '.join(sorted(unknown))} on {flags.data}; {' '.join(there)}")
    every = {way.replace(" ", ""): way for system in study.SYSTEMS for way in (*ways(system), "likelihood")}
    if unknown := set(flags.ways or ()) - every.keys():
        parser.error(f"--ways: no {', '.join(sorted(unknown))}; there are {' '.join(sorted(every))}")
    flags.ways = {every[word] for word in flags.ways or every}
    if not flags.report:
        this = Study(flags, flags.data)
        features = None if flags.stage == "train" else this.features()
        for seed in flags.seeds:
            for system in flags.only or there:
                folder = this.train(system, seed)
                if features:
                    this.measure(system, seed, folder, features)
    print(show(read(flags.out), flags.out))


if __name__ == "__main__":
    main()
