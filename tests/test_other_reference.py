"""The tests against recorded outputs pass on another folder of the same form: nothing about its cases is in them.

A copy of the folder is made, in which the cases, networks and checkpoints have other names, some are gone, and so are
single arrays; optimiser and VP losses are recorded again with other parameters, by PyTorch and by NumPy. All reference
tests run on it, unchanged, in a process of their own. What is not there skips.

    python tests/test_other_reference.py FOLDER      # makes such a copy
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import refdata

# Names of the cases stand in the .json, and as parts of the keys of the files that begin so.
TABLES = {
    "psld_kernels.json": "psld_", "cld_kernels.json": "cld_", "cld_losses.json": "cld_", "lsgm_diffusion.json": "lsgm_",
    "ncsnv2_techniques.json": "ncsnv2_techniques", "scoresde_train_steps.json": "scoresde_train_steps",
}  # fmt: skip
DROPPED = {"scoresde_kernels.json": ["subvp"]}  # whose names say which process it is
FAMILIES = ("lsgm_nvae_", "lsgm_ncsnpp_", "ncsnv2repo_", "scoresde_", "psld_", "cld_", "lsgm_")


def make(source: Path, target: Path) -> None:
    """The renamed and thinned copy."""
    target.mkdir(parents=True, exist_ok=True)
    renamed: dict[str, dict[str, str | None]] = {}
    for table, prefix in TABLES.items():
        settings = json.loads((source / table).read_text())
        names = sorted({key.split("/")[0] for key in settings})
        new = {name: f"case-{i}.{prefix[0]}" for i, name in enumerate(names)}
        if len(names) > 1:
            new[names[-1]] = None
        renamed[prefix] = renamed.get(prefix, {}) | new
        write_json(target / table, {_key(key, new): value for key, value in settings.items() if _key(key, new)})
    for path in sorted(source.glob("*.json")):
        if path.name not in TABLES:
            settings = json.loads(path.read_text())
            write_json(target / path.name, {k: v for k, v in settings.items() if k not in DROPPED.get(path.name, [])})
    for path in sorted(source.glob("*.npz")):
        names = {a: b for prefix, new in renamed.items() if path.name.startswith(prefix) for a, b in new.items()}
        with np.load(path) as arrays:
            kept = {_key(k, names): v for k, v in arrays.items() if _key(k, names) and not _thinned(path.name, k)}
        np.savez(target / path.name, **kept)
    nets = _rename_files(source / "nets", target / "nets")
    _rename_files(source / "checkpoints", target / "checkpoints")
    for path in (target / "checkpoints").glob("lsgm_*.json"):
        write_json(path, {k: nets.get(name, name) for k, name in json.loads(path.read_text()).items()})
    shutil.copytree(source / "inception", target / "inception")
    optimiser(target)
    vp_losses(target, next(new for new in renamed["cld_"].values() if new and _is_vp(target, new)))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _key(key: str, names: dict[str, str | None]) -> str | None:
    """A key with the cases' names changed; None if the case is gone."""
    parts = [names.get(part, part) for part in key.split("/")]
    return None if None in parts else "/".join(map(str, parts))


def _thinned(file: str, key: str) -> bool:
    """One array in forty of those that are results, by an arbitrary rule."""
    return (
        "/" in key
        and not re.search("train_steps|gauss/(mu|s)$|/init/", f"{file}/{key}")
        and not zlib.crc32(key.encode()) % 41
    )


def _rename_files(source: Path, target: Path) -> dict[str, str]:
    """Copies the files of each stem under a new one; of every family the last is left out, if it is not the only."""
    target.mkdir(exist_ok=True)
    stems = sorted(path.stem for path in source.glob("*.json"))
    new: dict[str, str] = {}
    for family in FAMILIES:
        mine = [stem for stem in stems if stem.startswith(family) and stem not in new]
        new |= {stem: f"{family}case-{i}" for i, stem in enumerate(mine)}
        for stem in mine[:-1] or mine:
            for path in source.glob(f"{stem}*"):
                rest = path.name.removeprefix(stem)
                if rest.startswith((".", "_expected")):
                    shutil.copy(path, target / (new[stem] + rest))
    return new


def optimiser(target: Path) -> None:
    """Adam, clipping, warm-up and average of other parameters, by PyTorch in float64 and in float32."""
    torch = pytest.importorskip("torch")
    adam = {"learning_rate": 3e-3, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6}
    write_json(target / "scoresde_optim_ema.json", adam)
    rng = np.random.default_rng(1)
    out = {"p0": rng.standard_normal(5), "grads": rng.standard_normal((8, 5)).astype(np.float32).astype(np.float64)}
    out["p0"] = out["p0"].astype(np.float32).astype(np.float64)
    for warmup, clip, decay in ((0, 0.5, 0.9), (4, -1, 0.99)):
        for mode, dtype in (("f64", torch.float64), ("official", torch.float32)):
            p = torch.tensor(out["p0"], dtype=dtype, requires_grad=True)
            optimizer = torch.optim.Adam(
                [p], lr=adam["learning_rate"], betas=(adam["beta1"], adam["beta2"]), eps=adam["eps"]
            )
            shadow, seen = p.detach().clone(), {"params": [], "ema": []}
            for step, gradient in enumerate(out["grads"]):
                p.grad = torch.tensor(gradient, dtype=dtype)
                if warmup:
                    optimizer.param_groups[0]["lr"] = adam["learning_rate"] * min(step / warmup, 1.0)
                if clip >= 0:
                    torch.nn.utils.clip_grad_norm_([p], max_norm=clip)
                optimizer.step()
                rate = 1 - min(decay, (2 + step) / (11 + step))  # updates are counted from 1
                shadow = shadow - rate * (shadow - p.detach())
                seen["params"].append(p.detach().numpy().copy())
                seen["ema"].append(shadow.numpy().copy())
            out |= {f"{mode}/warmup{warmup}_clip{clip}_ema{decay}/{k}": np.stack(v) for k, v in seen.items()}
    np.savez(target / "scoresde_optim_ema.npz", **out)


def _is_vp(target: Path, name: str) -> bool:
    return name in json.loads((target / "cld_losses.json").read_text())


def vp_losses(target: Path, name: str) -> None:
    """The losses of CLD's repository for VP of another rate, of the folder's stand-in network, by NumPy.

    Per-example sums of 1/2 weight (eps_hat - eps)^2: weight 1 (reweightedv1 is that of the mixed score, 1 too for VP's
    eps), beta / variance for the likelihood.
    """
    c = {"beta0": 0.2, "beta1": 9.0}
    write_json(target / "cld_losses.json", {name: c})
    with np.load(target / "cld_losses.npz") as archive:
        arrays = {k: v for k, v in archive.items() if not k.startswith(f"{name}/")}
    t, x0 = arrays["rand_t"] * (1 - 1e-5) + 1e-5, np.float64(arrays["x0"])
    eps = np.float64(arrays["noise_batch"])[:, : x0.shape[1]]
    integral, beta = c["beta0"] * t + 0.5 * c["beta1"] * t**2, c["beta0"] + c["beta1"] * t
    variance = -np.expm1(-integral)
    column = lambda v: v.reshape(-1, 1, 1, 1)  # noqa: E731
    z = x0 * column(np.exp(-0.5 * integral)) + column(np.sqrt(variance)) * eps
    predicted = 0.1 * np.sin(z) + 0.05 * np.cos(column(t))
    square = np.sum((predicted - eps) ** 2, axis=(1, 2, 3))
    arrays |= {
        f"{name}/f64/reweightedv2/mixed0": square,
        f"{name}/f64/likelihood/mixed0": 0.5 * beta / variance * square,
    }
    np.savez(target / "cld_losses.npz", **arrays)


def run(folder: Path) -> tuple[dict[str, int], str]:
    """Counts of the outcomes of all quick reference tests on a folder, and what pytest said."""
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "reference and not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*words, str(refdata.ROOT / "tests")], capture_output=True, text=True, check=False, cwd=refdata.ROOT,
        env={**os.environ, "SGMJAX_REFERENCE": str(folder)},
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1]
    return {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", last)}, done.stdout[-5000:] + done.stderr


@pytest.mark.slow
def test_other_cases(reference, tmp_path):
    make(reference, tmp_path / "reference")
    counts, said = run(tmp_path / "reference")
    assert counts.get("passed", 0) > 200 and not {"failed", "error", "errors"} & counts.keys(), said


@pytest.mark.slow
def test_no_case_at_all(tmp_path):
    counts, said = run(tmp_path)
    assert counts.get("skipped", 0) > 50 and not {"failed", "error", "errors"} & counts.keys(), said


if __name__ == "__main__":
    make(refdata.REFERENCE, Path(sys.argv[1]))
