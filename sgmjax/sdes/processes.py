"""The published processes. Each is a few lines on the core: what differs between papers is written here, and only here.

All times are in [0, 1]. Beware of two conventions: PSLD and score_sde give beta by its end values (used here), CLD and
gDDIM by start and slope; and CLD's drift has no factor 1/2 where PSLD's has, so CLD at beta = 4 is PSLD at beta = 8
with gamma = 0, nu = 4. CLD's gamma is PSLD's kappa.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax import _ranges
from sgmjax._inputs import InputError
from sgmjax._ranges import NonNegativeFloat
from sgmjax._types import Matrices, Numbers, Scalar, Square, Times
from sgmjax.sdes import linalg
from sgmjax.sdes._recipe import Recipe, check_schedule, check_variance, recipe
from sgmjax.sdes._types import Fraction, Frame, NonNegative, Positive, SigmaDist, check_one_number
from sgmjax.sdes.base import SDE, Kernel, Matching
from sgmjax.sdes.schedules import LinearSchedule, geometric


def _positive(**values) -> None:
    check_one_number(**values)
    for name, value in values.items():
        if linalg.is_concrete(value) and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} = {value:g}: must be positive.")


def _below_one(**values) -> None:
    check_one_number(**values)
    for name, value in values.items():
        if linalg.is_concrete(value) and not 0 <= value < 1:
            raise InputError(f"{name} = {value:g}: must be at least 0 and below 1.")


def vp(*, beta_min: NonNegative = 0.1, beta_max: Positive = 20.0, sigma2_0: Fraction = 0.0) -> Recipe:
    """Variance preserving SDE, dx = -beta x / 2 dt + sqrt(beta) dw. Reference: Song et al. 2021, eq. (11).

    Args:
        beta_min, beta_max: rate at t = 0 and t = 1.
        sigma2_0: variance of the kernel at t = 0, below 1: 1 - (1 - sigma2_0) e^{-B} (Vahdat et al. 2021, app. B.1).

    Examples:
        >>> kernel = sdes.vp(beta_min=2.0, beta_max=2.0).transition(jnp.ones(1))  # of z_1 given x_0: B = 2
        >>> round(float(kernel.mean[0, 0, 0]), 3), round(float(kernel.covariance[0, 0, 0]), 3)  # e^-1 and 1 - e^-2
        (0.368, 0.865)
    """
    _below_one(sigma2_0=sigma2_0)
    schedule = LinearSchedule(beta_min=beta_min, beta_max=beta_max)
    return recipe(D=[[0.5]], Q=[[0.0]], schedule=schedule, sigma2_0=sigma2_0, name="vp")


def geometric_vp(
    *,
    sigma2_min: _ranges.OpenUnit = 3e-5,
    sigma2_max: _ranges.OpenUnit = 0.999,
    sigma2_0: _ranges.Fraction | None = None,
) -> Recipe:
    """VP with a rate that lets the kernel's variance grow geometrically (LSGM's geometric VPSDE).

    sigma_t^2 = sigma2_min (sigma2_max / sigma2_min)^t - sigma2_min + sigma2_0.

    Args:
        sigma2_min, sigma2_max: ends of the progression. Concrete numbers: the schedule is computed in float64.
        sigma2_0: variance at t = 0; None: sigma2_min, the published choice, under which t_min may be 0.

    Raises:
        ValueError: see `schedules.geometric`.

    Reference: Vahdat et al. 2021, app. B.3.

    Examples:
        >>> sde = sdes.geometric_vp(sigma2_min=0.01, sigma2_max=0.81)
        >>> kernel = sde.transition(jnp.array([0.0, 0.5, 1.0]))
        >>> [round(float(std), 3) for std in kernel.factor[:, 0, 0]]  # in geometric progression
        [0.1, 0.3, 0.9]
    """
    sigma2_0 = sigma2_min if sigma2_0 is None else sigma2_0
    check_one_number(sigma2_min=sigma2_min, sigma2_max=sigma2_max, sigma2_0=sigma2_0)
    schedule = geometric(sigma2_min=sigma2_min, sigma2_max=sigma2_max, sigma2_0=sigma2_0)
    return recipe(D=[[0.5]], Q=[[0.0]], schedule=schedule, sigma2_0=sigma2_0, name="geometric_vp")


def cld(
    *,
    beta_min: NonNegative = 4.0,
    beta_max: Positive = 4.0,
    m_inv: Positive = 4.0,
    kappa: Positive = 0.04,
    numerical_eps: NonNegativeFloat = 0.0,
) -> Recipe:
    """Critically damped Langevin diffusion of Dockhorn et al. 2022, eq. (5), in their convention of beta.

    dx = beta m_inv v dt,  dv = -beta (x + Gamma m_inv v) dt + sqrt(2 Gamma beta) dw,  Gamma = 2 / sqrt(m_inv).

    Args:
        beta_min, beta_max: rate at t = 0 and t = 1.
        m_inv: inverse mass 1/M; the prior is N(0, 1) for x and N(0, M) for v.
        kappa: Var[v_0] = kappa M. The paper's gamma.
        numerical_eps: see `Recipe`.

    Examples:
        >>> sde = sdes.cld(m_inv=4.0)
        >>> sde.k, sde.num_noised  # position and velocity, of which the velocity has noise
        (2, 1)
        >>> sde.Sigma_inf.tolist()  # of the prior
        [[1.0, 0.0], [0.0, 0.25]]
    """
    _positive(m_inv=m_inv, kappa=kappa)
    friction = 2 * m_inv**-0.5
    return recipe(
        D=[[0.0, 0.0], [0.0, friction]],
        Q=[[0.0, -1.0], [1.0, 0.0]],
        Sigma_inf=[[1.0, 0.0], [0.0, 1 / m_inv]],
        Sigma_0=[[kappa / m_inv]],
        schedule=LinearSchedule(beta_min=beta_min, beta_max=beta_max),
        numerical_eps=numerical_eps,
        num_noised=1,
        variables=("x", "v"),
        name="cld",
    )


def psld(
    *,
    beta_min: NonNegative = 8.0,
    beta_max: Positive = 8.0,
    gamma: NonNegative = 0.01,
    nu: NonNegative = 4.01,
    kappa: Positive = 0.04,
    factor: Frame = "auto",
    numerical_eps: NonNegativeFloat = 0.0,
) -> Recipe:
    """Phase space Langevin diffusion of Pandey & Mandt 2023, eq. (10), critically damped: m_inv = (gamma - nu)^2 / 4.

    dx = beta/2 (m_inv m - gamma x) dt + sqrt(beta gamma) dw,  dm = -beta/2 (x + nu m) dt + sqrt(beta nu M) dw.

    Args:
        beta_min, beta_max: rate at t = 0 and t = 1.
        gamma: friction of the data variable; 0 is CLD, and only m receives noise.
        nu: friction of the momentum; 0: only x receives noise.
        kappa: Var[m_0] = kappa M.
        factor: triangular shape of the kernel's factor: "lower", "upper", or "auto" (lower unless only x is noised).
        numerical_eps: see `Recipe`.

    Raises:
        ValueError: gamma = nu (the mass would be infinite), negative friction.

    Examples:
        >>> sde = sdes.psld(gamma=0.01, nu=4.01)
        >>> sde.k, sde.num_noised  # position and momentum, both with noise
        (2, 2)
        >>> sde.augment(jnp.zeros((8, 32, 32, 3))).shape  # images as states
        (8, 2, 32, 32, 3)
    """
    check_one_number(gamma=gamma, nu=nu)
    if linalg.is_concrete(gamma, nu):
        if not (0 <= gamma < np.inf and 0 <= nu < np.inf):
            raise InputError(f"gamma = {gamma:g}, nu = {nu:g}: frictions must be finite and >= 0.")
        if gamma == nu:
            raise InputError(f"gamma = nu = {gamma:g} makes critical damping's mass infinite: choose nu > gamma.")
    _positive(kappa=kappa)
    m_inv = (gamma - nu) ** 2 / 4
    return recipe(
        D=[[gamma / 2, 0.0], [0.0, nu / (2 * m_inv)]],
        Q=[[0.0, -0.5], [0.5, 0.0]],
        Sigma_inf=[[1.0, 0.0], [0.0, 1 / m_inv]],
        Sigma_0=[[kappa / m_inv]],
        schedule=LinearSchedule(beta_min=beta_min, beta_max=beta_max),
        frame=factor,
        numerical_eps=numerical_eps,
        num_noised=None if linalg.is_concrete(gamma, nu) else 2,
        variables=("x", "m"),
        name="psld",
    )


def third_order(
    *,
    beta_min: NonNegative = 4.0,
    beta_max: Positive = 4.0,
    m_inv: Positive = 4.0,
    gamma: Positive | None = None,
    xi: Positive | None = None,
    kappa: Positive = 0.04,
    numerical_eps: NonNegativeFloat = 0.0,
) -> Recipe:
    """Third-order Langevin diffusion: position q, momentum p, acceleration s; only s receives noise.

    dq = beta m_inv p dt,  dp = beta (-q + gamma m_inv s) dt,
    ds = -beta m_inv (gamma p + xi s) dt + sqrt(2 xi beta) dw.

    Args:
        beta_min, beta_max: rate at t = 0 and t = 1.
        m_inv: inverse of the stationary variance of p and s.
        gamma, xi: coupling and friction; None: critical damping, gamma = 2 sqrt(2 M), xi = 3 sqrt(3 M), where all three
            eigenvalues are -sqrt(3 m_inv).
        kappa: Var[p_0] = Var[s_0] = kappa M.
        numerical_eps: see `Recipe`.

    Reference: Mou et al. 2021 (the dynamics); Shi & Liu 2024 (critical damping, generative use).

    Examples:
        >>> sde = sdes.third_order(m_inv=4.0)
        >>> sde.k, sde.num_noised
        (3, 1)
        >>> np.linalg.eigvals(sde.F).real.round(2).tolist()  # critical damping: three times -sqrt(12)
        [-3.46, -3.46, -3.46]
    """
    given = {name: value for name, value in (("gamma", gamma), ("xi", xi)) if value is not None}
    _positive(m_inv=m_inv, kappa=kappa, **given)
    mass = 1 / m_inv
    coupling = (8 * mass) ** 0.5 if gamma is None else gamma
    friction = (27 * mass) ** 0.5 if xi is None else xi
    return recipe(
        D=[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, friction]],
        Q=[[0.0, -1.0, 0.0], [1.0, 0.0, -coupling], [0.0, coupling, 0.0]],
        Sigma_inf=[[1.0, 0.0, 0.0], [0.0, mass, 0.0], [0.0, 0.0, mass]],
        Sigma_0=[[kappa * mass, 0.0], [0.0, kappa * mass]],
        schedule=LinearSchedule(beta_min=beta_min, beta_max=beta_max),
        numerical_eps=numerical_eps,
        num_noised=1,
        variables=("q", "p", "s"),
        name="third_order",
    )


def _scalar_kernel(mean, std) -> Kernel:
    return Kernel(mean=mean[:, None, None], inner=std[:, None, None], num_noised=1)


class _Scalar(SDE):
    """k = 1 processes whose coefficients are not constant in the schedule's own time."""

    k = 1
    num_noised = 1
    frame = None

    def initial_factor(self) -> Square:
        return jnp.reshape(jnp.sqrt(self.initial_variance()), (1, 1))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SubVP(_Scalar):
    """Sub-variance preserving SDE, dx = -beta x / 2 dt + sqrt(beta (1 - e^{-2B})) dw.

    The kernel's variance is (1 - e^{-B})^2 + sigma2_0 e^{-B}.

    Reference: Song et al. 2021, eq. (12); Vahdat et al. 2021, app. B.4 (sigma2_0).
    """

    schedule: LinearSchedule
    sigma2_0: Any = 0.0
    name = "subvp"

    def initial_variance(self) -> Scalar:
        return self.sigma2_0

    def inverse_variance(self, variance: Times) -> Times:
        if not linalg.is_concrete(self.sigma2_0) or self.sigma2_0 != 0:
            raise InputError("sub-VP's variance first falls when sigma2_0 > 0: it has no inverse.")
        return self.schedule.inverse(-jnp.log1p(-jnp.sqrt(variance)))

    def distance_to_prior(self, t: Times) -> Times:
        decay = jnp.exp(-self.schedule.integral(t))
        return decay * (2 - decay - self.sigma2_0)

    def drift_matrix(self, t: Times) -> Matrices:
        return -0.5 * self.schedule.beta(t)[:, None, None]

    def diffusion(self, t: Times) -> Matrices:
        return jnp.sqrt(self.schedule.beta(t) * -jnp.expm1(-2 * self.schedule.integral(t)))[:, None, None]

    def diffusion_between(self, s: Times, t: Times) -> Matrices:
        gap, low = self.schedule.between(s, t), self.schedule.integral(s)
        return (gap + 0.5 * jnp.exp(-2 * low) * jnp.expm1(-2 * gap))[:, None, None]

    def transition(self, t: Times, matching: Matching = "hsm") -> Kernel:
        B = self.schedule.integral(t)
        variance = jnp.expm1(-B) ** 2 + self.sigma2_0 * jnp.exp(-B)
        positive = variance > 0
        return _scalar_kernel(jnp.exp(-0.5 * B), jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0))

    def transition_between(self, s: Times, t: Times) -> Kernel:
        # Var = 1 + e^{-2 B_t} - e^{-(B_t - B_s)} - e^{-(B_t + B_s)} = (1 - e^{-(B_t - B_s)}) (1 - e^{-(B_t + B_s)})
        gap, total = self.schedule.between(s, t), self.schedule.integral(s) + self.schedule.integral(t)
        return _scalar_kernel(jnp.exp(-0.5 * gap), jnp.sqrt(jnp.expm1(-gap) * jnp.expm1(-total)))

    def reverse_linear(self, t: Times, s: Times) -> Kernel:
        # Drift per unit B: 1/2 - (1 - e^{-2b}) = e^{-2b} - 1/2, from B_t down to B_s. With y = e^{-b} the variance is
        # the integral of (1 - y^2) e^{y_s^2 - y^2} / y_s from y_t to y_s, of a function that is smooth on [0, 1].
        low, gap = self.schedule.integral(s), self.schedule.between(s, t)
        last, share = jnp.exp(-low), -jnp.expm1(-gap)  # y_s, and (y_s - y_t) / y_s
        nodes, weights = np.polynomial.legendre.leggauss(8)
        variance = 0.0
        for node, weight in zip((nodes + 1) / 2, weights / 2):
            fall = last * share * float(node)  # y_s - y
            rest = -jnp.expm1(-low) + fall  # 1 - y
            variance = variance + float(weight) * share * rest * (2 - rest) * jnp.exp(fall * (2 * last - fall))
        mean = jnp.exp(-0.5 * jnp.exp(-2 * low) * jnp.expm1(-2 * gap) - 0.5 * gap)
        return _scalar_kernel(mean, jnp.sqrt(variance))

    def split_precision(self) -> Square:
        return np.ones((1, 1))

    def prior_factor(self) -> Square:
        return np.ones((1, 1))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VE(_Scalar):
    """Variance exploding SDE, dx = sqrt(d sigma^2 / dt) dw, sigma(t) = sigma_min (sigma_max / sigma_min)^t.

    With `sigma_dist` "uniform" sigma(t) = sigma_min + t (sigma_max - sigma_min): at equal steps of time its levels are
    equally spaced, where those of "geometric" have a constant ratio.

    The kernel from the data has variance sigma2_0 + sigma(t)^2 - sigma_min^2. At t = 0 that is, as in the official
    codes, sigma_min^2 (sigma2_0 None), so that the standard deviation is sigma(t).

    Reference: Song et al. 2021, eq. (9) and app. C; Vahdat et al. 2021, app. B.2 (sigma2_0); the published code of
    Song & Ermon 2020 (sigma_dist).
    """

    sigma_min: Any
    sigma_max: Any
    sigma2_0: Any = None
    sigma_dist: SigmaDist = "geometric"
    name = "ve"

    def initial_variance(self) -> Scalar:
        return self.sigma_min**2 if self.sigma2_0 is None else self.sigma2_0

    def inverse_variance(self, variance: Times) -> Times:
        rise = variance - self.initial_variance()
        if self.sigma_dist == "uniform":
            return rise / ((jnp.sqrt(self.sigma_min**2 + rise) + self.sigma_min) * self._slope())
        return jnp.log1p(rise / self.sigma_min**2) / (2 * self._log_ratio())

    def distance_to_prior(self, t: Times) -> Times:
        return jnp.ones_like(t)

    def _log_ratio(self):
        return jnp.log(self.sigma_max) - jnp.log(self.sigma_min)

    def _slope(self):
        return self.sigma_max - self.sigma_min

    def sigma(self, t: Numbers) -> Numbers:
        """Noise level at t, of the class's docstring; same shape as t."""
        if self.sigma_dist == "uniform":
            return self.sigma_min + t * self._slope()
        return self.sigma_min * jnp.exp(t * self._log_ratio())

    def _rise(self, s, t):
        """sigma(t)^2 - sigma(s)^2, without cancellation."""
        if self.sigma_dist == "uniform":
            return (t - s) * self._slope() * (self.sigma(s) + self.sigma(t))
        return self.sigma(s) ** 2 * jnp.expm1(2 * (t - s) * self._log_ratio())

    def drift_matrix(self, t: Times) -> Matrices:
        return jnp.zeros((t.shape[0], 1, 1), t.dtype)

    def diffusion(self, t: Times) -> Matrices:
        if self.sigma_dist == "uniform":
            return jnp.sqrt(2 * self._slope() * self.sigma(t))[:, None, None]
        return (self.sigma(t) * jnp.sqrt(2 * self._log_ratio()))[:, None, None]

    def diffusion_between(self, s: Times, t: Times) -> Matrices:
        return self._rise(s, t)[:, None, None]

    def transition(self, t: Times, matching: Matching = "hsm") -> Kernel:
        std = self.sigma(t)
        if self.sigma2_0 is not None:
            variance = self.sigma2_0 + self._rise(jnp.zeros_like(t), t)
            positive = variance > 0
            std = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)
        return _scalar_kernel(jnp.ones_like(t), std)

    def transition_between(self, s: Times, t: Times) -> Kernel:
        return _scalar_kernel(jnp.ones_like(t), jnp.sqrt(self._rise(s, t)))

    def reverse_linear(self, t: Times, s: Times) -> Kernel:
        return self.transition_between(s, t)

    def split_precision(self) -> Square:
        return np.zeros((1, 1))

    def prior_factor(self) -> Square:
        if self.sigma2_0 is None:
            return jnp.reshape(jnp.asarray(self.sigma_max), (1, 1))
        return jnp.reshape(jnp.sqrt(self.sigma_max**2 - self.sigma_min**2 + self.sigma2_0), (1, 1))


jax.tree_util.register_dataclass(SubVP, ["schedule", "sigma2_0"], [])
jax.tree_util.register_dataclass(VE, ["sigma_min", "sigma_max", "sigma2_0"], ["sigma_dist"])


def subvp(*, beta_min: NonNegative = 0.1, beta_max: Positive = 20.0, sigma2_0: Fraction = 0.0) -> SubVP:
    """Sub-VP SDE; see `SubVP`.

    Examples:
        >>> kernel = sdes.subvp(beta_min=2.0, beta_max=2.0).transition(jnp.ones(1))  # of z_1 given x_0: B = 2
        >>> round(float(kernel.mean[0, 0, 0]), 3), round(float(kernel.factor[0, 0, 0]), 3)  # e^-1, deviation 1 - e^-2
        (0.368, 0.865)
    """
    _below_one(sigma2_0=sigma2_0)
    schedule = LinearSchedule(beta_min=beta_min, beta_max=beta_max)
    check_schedule(schedule)
    return SubVP(schedule=schedule, sigma2_0=sigma2_0)


def ve(
    *,
    sigma_min: Positive = 0.01,
    sigma_max: Positive = 50.0,
    sigma2_0: NonNegative | None = None,
    sigma_dist: SigmaDist = "geometric",
) -> VE:
    """VE SDE; see `VE`.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max; a negative sigma2_0; an unknown sigma_dist.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=100.0)
        >>> [round(float(sigma), 3) for sigma in sde.sigma(jnp.array([0.0, 0.5, 1.0]))]
        [0.01, 1.0, 100.0]
    """
    if sigma_dist not in ("geometric", "uniform"):
        raise InputError(f"sigma_dist must be 'geometric' or 'uniform', not {sigma_dist!r}.")
    if sigma2_0 is not None:
        check_variance(sigma2_0)
    _positive(sigma_min=sigma_min, sigma_max=sigma_max)
    if linalg.is_concrete(sigma_min, sigma_max) and not sigma_min < sigma_max:
        raise InputError(f"sigma_min = {sigma_min:g} must be below sigma_max = {sigma_max:g}.")
    return VE(sigma_min=sigma_min, sigma_max=sigma_max, sigma2_0=sigma2_0, sigma_dist=sigma_dist)
