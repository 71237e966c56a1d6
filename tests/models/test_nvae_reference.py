"""NVAE, its distributions and its checkpoints against the recorded outputs of LSGM's official program."""

from __future__ import annotations

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata
import tiers

from sgmjax.interop.lsgm import convert_lsgm_vae, from_lsgm_vae_config, image_of, read_lsgm
from sgmjax.models import distributions, layers
from sgmjax.models.nvae import NVAE, terms

RECORDED = refdata.load_npz("lsgm_distributions.npz")
# Float64 against float64: sums of some thousand terms.
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def _nhwc(a):
    return jnp.asarray(np.moveaxis(a, 1, -1))


def _nchw(a):
    return np.moveaxis(np.asarray(a), -1, 1)


def _state_dict(arrays):
    return {k.removeprefix("state_dict/"): v for k, v in arrays.items() if k.startswith("state_dict/")}


# ------------------------------------------------------------------------------------------------------------- networks
@pytest.mark.parametrize("path", refdata.files("nets/lsgm_nvae_*.json"))
def test_network(x64, path):
    """Encoder, latent variables, densities, KL, decoder, reconstruction loss and sample, in float64."""
    arrays = refdata.load_npz(refdata.beside(path, ".npz"))
    config = json.loads(path.read_text())
    module = from_lsgm_vae_config(config, dtype=jnp.float64)
    variables = convert_lsgm_vae(module, _state_dict(arrays))
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)
    x = _nhwc(arrays["x"])
    noise = [_nhwc(arrays[f"noise/{i}"]) for i in range(module.num_groups)]
    expected = {k.removeprefix("f64/"): v for k, v in arrays.items() if k.startswith("f64/")}

    @jax.jit
    def encode_and_decode(v, x, noise):
        out = module.apply(v, x, noise=noise)
        return out, module.apply(v, out.eps, method=NVAE.decode)

    out, decoded = encode_and_decode(wide, x, noise)
    if "logits" in expected:
        np.testing.assert_allclose(_nchw(out.logits), expected["logits"], **TIGHT)
    else:
        np.testing.assert_allclose(_nchw(out.logits), expected["logits_stored_as_float32"], rtol=1e-6, atol=1e-6)
    for i in range(module.num_groups):
        np.testing.assert_allclose(_nchw(out.eps[i]), expected[f"all_eps/{i}"], **TIGHT)
        np.testing.assert_allclose(_nchw(out.log_q[i]), expected[f"all_log_q/{i}"], **TIGHT)

    # The official program's rounded constant of the prior and its approximate tails; both are off by default.
    kl = terms.normal_prior_terms(out.log_q, out.eps, half_log_2pi=distributions.OFFICIAL_HALF_LOG_2PI)
    np.testing.assert_allclose(kl.per_group, expected["kl_per_group"], **TIGHT)
    np.testing.assert_allclose(terms.log_prob_of_groups(out.log_q), expected["log_q"], **TIGHT)
    prior = [
        distributions.standard_normal_log_prob(e, half_log_2pi=distributions.OFFICIAL_HALF_LOG_2PI) for e in out.eps
    ]
    np.testing.assert_allclose(terms.log_prob_of_groups(prior), expected["log_p_z"], **TIGHT)
    official = module.clone(approximate_tails=True)
    log_p_x = official.output_distribution(out.logits).log_prob(x)
    recorded = expected["log_p_x"]
    np.testing.assert_allclose(log_p_x if log_p_x.ndim == 3 else _nchw(log_p_x), recorded, **TIGHT)
    np.testing.assert_allclose(official.reconstruction_loss(out.logits, x), expected["recon_loss"], **TIGHT)
    # The exact tails matter little on average.
    np.testing.assert_allclose(module.reconstruction_loss(out.logits, x), expected["recon_loss"], rtol=1e-3)

    image = jnp.clip(module.output_distribution(decoded).mean(), -1.0, 1.0)
    np.testing.assert_allclose(_nchw((image + 1) / 2), expected["sample_img"], **TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("path", refdata.files("nets/lsgm_nvae_*.json"))
def test_network_in_single_precision(path):
    """As it is used; the recorded float32 outputs are as far from the recorded float64 ones."""
    arrays = refdata.load_npz(refdata.beside(path, ".npz"))
    module = from_lsgm_vae_config(json.loads(path.read_text()))
    variables = convert_lsgm_vae(module, _state_dict(arrays))
    x = _nhwc(arrays["x"]).astype(jnp.float32)
    noise = [_nhwc(arrays[f"noise/{i}"]).astype(jnp.float32) for i in range(module.num_groups)]
    out = jax.jit(module.apply)(variables, x, noise=noise)
    loss = module.clone(approximate_tails=True).reconstruction_loss(out.logits, x)
    np.testing.assert_allclose(loss, arrays["f64/recon_loss"], rtol=1e-5)
    np.testing.assert_allclose(terms.log_prob_of_groups(out.log_q), arrays["f64/log_q"], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("path", tiers.each(refdata.files("nets/lsgm_nvae_*.json"), 2))
def test_weights_of_another_network_are_refused(path):
    state = _state_dict(refdata.load_npz(refdata.beside(path, ".npz")))
    config = json.loads(path.read_text())
    module = from_lsgm_vae_config(config)
    more = from_lsgm_vae_config(config | {"num_groups_per_scale": config["num_groups_per_scale"] + 1})
    fewer = from_lsgm_vae_config(config | {"num_cell_per_cond_dec": config["num_cell_per_cond_dec"] + 1})
    wider = from_lsgm_vae_config(config | {"num_channels_enc": 2 * config["num_channels_enc"]})
    for other in (more, fewer, wider):
        with pytest.raises(ValueError, match="with other settings|has other settings"):
            convert_lsgm_vae(other, state)
    with pytest.raises(
        ValueError, match="the state dict lacks 1 variables of this VAE, the first being 'params/stem/bias'"
    ):
        convert_lsgm_vae(module, {k: v for k, v in state.items() if k != "stem.bias"})
    with pytest.raises(ValueError, match="state dict key 'stem.extra' of shape"):
        convert_lsgm_vae(module, state | {"stem.extra": np.zeros(3)})
    with pytest.raises(ValueError, match="state dict key 'head.weight' is not used by this VAE"):
        convert_lsgm_vae(module, state | {"head.weight": np.zeros(3)})
    with pytest.raises(ValueError, match="arch_instance: no conversion for 'dense'"):
        from_lsgm_vae_config(config | {"arch_instance": "dense"})
    with pytest.raises(ValueError, match="the official config has no 'num_nf'"):
        from_lsgm_vae_config({k: v for k, v in config.items() if k != "num_nf"})


@pytest.mark.parametrize("path", refdata.files("checkpoints/lsgm_*.json"))
def test_checkpoint(path):
    """Weights of a checkpoint equal those of the two networks its .json names."""
    pytest.importorskip("torch")
    prior = pytest.importorskip("sgmjax.interop.lsgm_prior")
    named = json.loads(path.read_text())
    checkpoint = read_lsgm(refdata.beside(path, ".pt"))
    nets = [refdata.REFERENCE / "nets" / f"{named[k]}.json" for k in ("vae_net", "dae_net")]
    vae_config, prior_config = (json.loads(refdata.beside(net, ".json").read_text()) for net in nets)
    vae_state, prior_state = (_state_dict(refdata.load_npz(refdata.beside(net, ".npz"))) for net in nets)
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoint.vae_variables,
        convert_lsgm_vae(from_lsgm_vae_config(vae_config), vae_state),
    )
    module = prior.from_lsgm_prior_config(prior_config)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.prior_params, prior.convert_lsgm_prior(module, prior_state))
    wrong = from_lsgm_vae_config(vae_config | {"num_channels_dec": 2 * vae_config["num_channels_dec"]})
    with pytest.raises(ValueError, match="the VAE has other settings"):
        read_lsgm(refdata.beside(path, ".pt"), wrong)


@pytest.mark.parametrize("path", refdata.files("checkpoints/lsgm_*.json"))
def test_checkpoint_with_its_optimiser_has_the_averages_too(path, tmp_path):
    """As train_vada.py saves it: the average of each parameter of the prior in the optimiser's state."""
    torch = pytest.importorskip("torch")
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(refdata.beside(path, ".pt"), weights_only=True)
    state = checkpoint["dae_state_dict"]
    entries = {i: {"step": 3, "ema": value + i + 1} for i, value in enumerate(state.values())}
    checkpoint["dae_optimizer"] = {"state": entries, "param_groups": [{"lr": 1e-4, "params": list(entries)}]}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    got = read_lsgm(tmp_path / "checkpoint.pt")
    raw = read_lsgm(refdata.beside(path, ".pt"))
    assert raw.prior_ema_params is None
    jax.tree.map(np.testing.assert_array_equal, got.prior_params, raw.prior_params)
    offsets = jax.tree.map(lambda a, b: np.unique(np.round(a - b, 3)), got.prior_ema_params, got.prior_params)
    found = np.concatenate(jax.tree.leaves(offsets))
    np.testing.assert_allclose(np.sort(found), 1 + np.arange(len(state)), rtol=1e-5)
    del checkpoint["dae_optimizer"]["param_groups"][0]["params"][-1]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="'dae_optimizer' has .* parameters and 'dae_state_dict'"):
        read_lsgm(tmp_path / "checkpoint.pt")


# -------------------------------------------------------------------------------------------------------- distributions
def _decoder(name, parameters, **options):
    return distributions.decoder_distribution(name, _nhwc(parameters), approximate=True, **options)


def _of_decoder(method, name, parameters, data=None, **options):
    def value(a):
        decoder = _decoder(name, a[parameters], **options)
        if method == "mean":
            return decoder.mean()
        return getattr(decoder, method)(_nhwc(a[data]))

    return value


def _reconstruction(name, parameters, **options):
    return lambda a: distributions.reconstruction_loss(_decoder(name, a[parameters], **options), _nhwc(a["x"]))


def _fixed_log_scale(a):
    """The constant that the recording used: log p is linear in the squared distance."""
    squared, log_p = np.square(a["mu"] - a["rho"]).ravel(), a["f64/pixelnormal_log_prob"].ravel()
    slope = np.polyfit(squared, log_p, 1)[0]
    return -0.5 * np.log(-2.0 * slope)


def _pixel_normal_discrete(a):
    value = distributions.discretized_normal_log_prob(_nhwc(a["x"]), _nhwc(a["mu"]), _fixed_log_scale(a))
    return jnp.maximum(value, np.log(1e-12))  # the official program clips probabilities there


def _temperature(a):
    """That of the recorded samples: what most red values, where nothing is clipped, are noise times."""
    decoder = _decoder("dml", a["param100"])
    u, red = (_nhwc(a[k])[..., 0] for k in ("dml_sample_u_logistic", "f64/disc_mix_logistic_sample"))
    chosen = jnp.argmax(decoder.logits - jnp.log(-jnp.log(_nhwc(a["dml_sample_u_gumbel"]))), axis=-1)[..., None]
    loc, log_scale = (
        jnp.take_along_axis(p[..., 0, :], chosen, axis=-1)[..., 0] for p in (decoder.loc, decoder.log_scale)
    )
    ratios = np.round((red - loc) * jnp.exp(-log_scale) / (jnp.log(u) - jnp.log1p(-u)), 6)
    values, counts = np.unique(ratios, return_counts=True)
    return float(values[np.argmax(counts)])


VALUES = {
    "normal_log_p": lambda a: distributions.normal_log_prob(_nhwc(a["rho"]), _nhwc(a["mu"]), _nhwc(a["log_sigma"])),
    "log_p_standard_normal": lambda a: distributions.standard_normal_log_prob(
        _nhwc(a["rho"]), half_log_2pi=distributions.OFFICIAL_HALF_LOG_2PI
    ),
    "decoder_normal_log_p": _of_decoder("log_prob", "normal", "param6", "x"),
    "bernoulli_log_p": _of_decoder("log_prob", "bin", "bernoulli_logits", "x_binary"),
    "bernoulli_mean": _of_decoder("mean", "bin", "bernoulli_logits"),
    "disc_logistic_log_p": _of_decoder("log_prob", "dl", "param6", "x"),
    "disc_logistic_mean": _of_decoder("mean", "dl", "param6"),
    "disc_mix_logistic_log_p": _of_decoder("log_prob", "dml", "param100", "x"),
    "disc_mix_logistic_5bit_log_p": _of_decoder("log_prob", "dml", "param100", "x_5bit", num_bits=5),
    "disc_mix_logistic_mean": _of_decoder("mean", "dml", "param100"),
    "disc_mix_logistic_sample": lambda a: _decoder("dml", a["param100"]).sample_from(
        _nhwc(a["dml_sample_u_gumbel"]), _nhwc(a["dml_sample_u_logistic"]), temperature=_temperature(a)
    ),
    "reconstruction_loss_dml": _reconstruction("dml", "param100"),
    "reconstruction_loss_dl": _reconstruction("dl", "param6"),
    "soft_clamp5": lambda a: distributions.soft_clamp(_nhwc(a["param6"])),
    # The official program rounds a constant here too.
    "pixelnormal_log_prob": lambda a: (
        distributions.normal_log_prob(_nhwc(a["rho"]), _nhwc(a["mu"]), _fixed_log_scale(a))
        + distributions.HALF_LOG_2PI
        - distributions.OFFICIAL_HALF_LOG_2PI
    ),
    "pixelnormal_log_prob_discrete": _pixel_normal_discrete,
}
# What the library has no function of its own for: one line of arithmetic, or another test's.
ELSEWHERE = ("normal_sample_given_rho", "log_p_var_normal", "kl_balancer", "soft_clamp_a")


@pytest.mark.parametrize("name", refdata.cases(RECORDED, f"f64/((?!{'|'.join(ELSEWHERE)}).+)"))
def test_distribution(x64, name):
    if name not in VALUES:
        pytest.skip(f"{name} has no counterpart here")
    value, expected = VALUES[name](RECORDED), RECORDED[f"f64/{name}"]
    value = _nchw(value) if expected.ndim == 4 else value
    # Where the official discretised normal subtracts two nearly equal numbers, its float64 has this accuracy.
    tolerance = {"rtol": 1e-4, "atol": 1e-9} if name.endswith("_discrete") else TIGHT
    np.testing.assert_allclose(value, expected, **tolerance)


@pytest.mark.parametrize("name", refdata.cases(RECORDED, "f64/soft_clamp_a(.+)"))
def test_soft_clamp(x64, name):
    value = distributions.soft_clamp(_nhwc(RECORDED["param6"]), float(name))
    np.testing.assert_allclose(_nchw(value), RECORDED[f"f64/soft_clamp_a{name}"], **TIGHT)


@pytest.mark.parametrize("name", refdata.cases(RECORDED, "f64/kl_balancer_coeff/(.+)"))
def test_group_weights(name):
    kind, scales, groups = name.split("_")
    groups = [int(digit) for digit in groups.removeprefix("groups")]
    assert len(groups) == int(scales.removeprefix("scales"))
    # The official list begins with the finest scale, the weights with the coarsest.
    np.testing.assert_allclose(terms.group_weights(groups[::-1], kind), RECORDED[f"f64/kl_balancer_coeff/{name}"])


@pytest.mark.parametrize("name", refdata.cases(RECORDED, "f64/kl_balancer/([^/]+)/.+"))
def test_kl_balancer(x64, name):
    coefficient, balance = name.removeprefix("coeff").split("_balance")
    kl = jnp.asarray(RECORDED["kl_all"])
    recorded = {k: RECORDED[f"f64/kl_balancer/{name}/{k}"] for k in ("kl", "coeffs", "vals")}
    alpha = None
    if int(balance) and float(coefficient) < 1.0:
        # The weights alpha were not recorded; the balanced ones tell them up to a factor, which cancels.
        alpha = (np.abs(RECORDED["kl_all"]).mean(axis=0) + 0.01) / (7.0 * recorded["coeffs"])
    value, weights = terms.balance_kl(kl, float(coefficient), alpha)
    np.testing.assert_allclose(value, recorded["kl"], **TIGHT)
    np.testing.assert_allclose(weights, recorded["coeffs"], **TIGHT)
    np.testing.assert_allclose(kl.mean(axis=0), recorded["vals"], **TIGHT)


@pytest.mark.parametrize("name", refdata.cases(RECORDED, "(kl_coeff_schedule)"))
def test_kl_schedule(name):
    expected = RECORDED[name]  # every fifth step, 10 constant ones and 100 of annealing to 1
    steps = 5 * np.arange(len(expected))
    settings = {"anneal_steps": 100, "constant_steps": 10, "minimum": expected[0], "maximum": 1.0}
    np.testing.assert_allclose(terms.kl_coefficient(steps, **settings), expected, rtol=1e-12)


@pytest.mark.parametrize("dataset", refdata.cases(RECORDED, "bpd_coeff/(.+)"))
def test_bits_per_dim(dataset):
    side, channels, _ = image_of(dataset)
    value = distributions.bits_per_dim(1.0, side * side * channels)
    np.testing.assert_allclose(value, RECORDED[f"bpd_coeff/{dataset}"], rtol=1e-12)


@pytest.mark.parametrize("bits", refdata.cases(RECORDED, r"change_bit_length/(\d+)"))
def test_fewer_bits(x64, bits):
    value = distributions.reduce_bits(jnp.asarray(RECORDED["change_bit_length/x"]), int(bits))
    np.testing.assert_allclose(value, RECORDED[f"change_bit_length/{bits}"], rtol=1e-12)


@pytest.mark.parametrize("name", refdata.cases(RECORDED, "positional_embedding/(.+)"))
def test_positional_embedding(x64, name):
    dim, scale = (int(part) for part in name.removeprefix("dim").split("_scale"))
    value = layers.timestep_embedding(jnp.asarray(RECORDED["embedding_t"]) * scale, dim)
    # Recorded in float32: angles up to `scale` have its rounding.
    np.testing.assert_allclose(value, RECORDED[f"positional_embedding/{name}"], atol=max(1e-6, 1e-7 * scale))
