"""Any process on scikit-learn's handwritten digits (8 x 8): `vp`, `subvp`, `ve`, `cld`, `psld` or `third_order`.

Command:   python -m sgmjax.train --config=configs/digits.py:cld          # into runs/digits_cld
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores, four to five minutes
Expected:  samples/final.png shows digits that a person can read; docs/samplers.md has the distances

Ours, not published: one small network for all, so that processes and samplers can be compared on a trained score.
`configs/psld_digits.py` is the same for PSLD.
"""

from sgmjax.config import complete

# sigma_max of VE is the largest distance between two digits (Song & Ermon 2020, technique 1).
PROCESSES = {
    "vp": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
    "subvp": {"name": "subvp", "beta_min": 0.1, "beta_max": 20.0},
    "ve": {"name": "ve", "sigma_min": 0.01, "sigma_max": 10.0},
    "cld": {"name": "cld", "beta_min": 4.0, "beta_max": 4.0, "m_inv": 4.0, "kappa": 0.04},
    "psld": {"name": "psld", "beta_min": 8.0, "beta_max": 8.0, "gamma": 0.01, "nu": 4.01, "kappa": 0.04},
    "third_order": {"name": "third_order"},
}


def get_config(process: str = "psld"):
    if process not in PROCESSES:
        raise ValueError(f"digits.py:{process}: no such process; choose one of {', '.join(PROCESSES)}")
    model = {
        "name": "ncsnpp",
        "nf": 32,
        "ch_mult": (1, 1),
        "num_res_blocks": 1,
        "attn_resolutions": (4,),
        "dropout": 0.0,
    }
    objective = {"matching": "hsm", "weighting": "simple", "time_conditioning": "t999"}
    if process == "ve":
        model |= {"embedding_type": "fourier", "scale_by_sigma": True}
        objective |= {"parameterization": "score", "time_conditioning": "sigma"}
    return complete(
        {
            "data": {"name": "digits"},
            "sde": PROCESSES[process],
            "model": model,
            "objective": objective,
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 200, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 2000,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 500,
                "sample_every": 0,
                "checkpoint_every": 500,
            },
            "sampling": {"sampler": "sscs", "steps": 50, "grid": "quadratic", "num": 1000, "batch_size": 500},
        }
    )
