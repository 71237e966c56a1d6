"""Processes that no recipe gives, each a few lines on `linear`, and Langevin dynamics of order 2 to 10.

    flow            the straight path of flow matching and rectified flow
    cosine          the schedule of improved DDPM
    edm             sigma = t, the schedule of Karras et al.
    psld_friction   PSLD whose frictions change in time
    hold            higher-order Langevin dynamics, critically damped, of order 2 to 10

For one variable a path is its mean's factor alpha(t) and its deviation s(t), z_t = alpha x_0 + s n: `gaussian_path`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np

from sgmjax import _ranges
from sgmjax._inputs import InputError
from sgmjax._ranges import check_range
from sgmjax.sdes import linalg
from sgmjax.sdes._linear import Linear, linear
from sgmjax.sdes._recipe import Recipe, recipe
from sgmjax.sdes._types import NonNegative, Positive, check_one_number
from sgmjax.sdes.schedules import LinearSchedule

Order = Annotated[int, _ranges.ORDER]


def gaussian_path(
    alpha: Callable[[Any], Any], s: Callable[[Any], Any], *, prior: float | None = None, name: str = "path"
) -> Linear:
    """The process of one variable with z_t = alpha(t) x_0 + s(t) n for every t.

    f = alpha' / alpha and g^2 = 2 s s' - 2 f s^2, by automatic differentiation in float64.

    Args:
        alpha, s: functions of t in jax.numpy, s growing faster than alpha; alpha(0) = 1 and s(0) = 0, and alpha > 0
            up to t = 1: stretch time where a path ends in noise alone.
        prior: variance from which sampling starts; None: that at t = 1.
        name: of the process.

    Raises:
        InputError: as `linear`; a path that starts elsewhere, or along which noise is taken away.

    Reference: Kingma et al. 2021, "Variational diffusion models", app. (the coefficients of a path).

    Examples:
        >>> sde = sdes.gaussian_path(lambda t: 1 - t / 2, lambda t: t, prior=1.25)  # half of the data is left at t = 1
        >>> kernel = sde.transition(jnp.array([0.5]))
        >>> round(float(kernel.mean[0, 0, 0]), 3), round(float(kernel.factor[0, 0, 0]), 3)
        (0.75, 0.5)
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        start = float(alpha(np.float64(0.0))), float(s(np.float64(0.0)))
    if abs(start[0] - 1) > 1e-12 or abs(start[1]) > 1e-12:
        raise InputError(f"alpha(0) = {start[0]:g}, s(0) = {start[1]:g}: a path starts at the data, 1 and 0.")

    falling, rising = (jax.jit(jax.value_and_grad(function)) for function in (alpha, s))

    def f(t: float) -> Any:
        value, slope = falling(t)
        return slope / value

    def g(t: float) -> Any:
        value, slope = rising(t)
        square = float(2 * value * (slope - f(t) * value))
        if square < -1e-12:
            raise InputError(f"noise is taken away at t = {t:.4g}: s / alpha must grow.")
        return math.sqrt(max(square, 0.0))

    return linear(f, g, prior=None if prior is None else [[prior]], name=name)


def _known(wanted: _ranges.Range = _ranges.POSITIVE, **values: Any) -> None:
    """Raise for a setting out of its range, or a traced one: tables are made on the host."""
    for name, value in values.items():
        if not linalg.is_concrete(value):
            raise InputError(f"{name}: is traced (an argument of jit), and the process is tabulated; make it outside.")
        check_range(value, wanted, name)
        check_one_number(**{name: value})


def flow(*, alpha_end: _ranges.OpenUnit = 1e-3) -> Linear:
    """The straight path z_t = (1 - t) x_0 + t n of flow matching, up to a rest alpha_end of the data at t = 1.

    z_t = (1 - (1 - alpha_end) t) x_0 + t n: at alpha_end = 0 the process has no rate at t = 1. Its probability flow is
    that of conditional flow matching and of rectified flow, of stochastic interpolants with these two functions.

    Args:
        alpha_end: what is left of the data at t = 1; the noise level there is 1 / alpha_end.

    Reference: Lipman et al. 2023, eq. (20), where t runs the other way; Liu et al. 2023; Albergo et al. 2023.

    Examples:
        >>> kernel = sdes.flow().transition(jnp.array([0.25]))
        >>> round(float(kernel.mean[0, 0, 0]), 2), round(float(kernel.factor[0, 0, 0]), 2)  # z = 0.75 x_0 + 0.25 n
        (0.75, 0.25)
    """
    _known(_ranges.OPEN_UNIT, alpha_end=alpha_end)
    fall = 1 - alpha_end
    return linear(
        lambda t: -fall / (1 - fall * t), lambda t: math.sqrt(2 * t / (1 - fall * t)), prior=[[1.0]], name="flow"
    )


def cosine(*, sigma_max: Positive = 200.0) -> Linear:
    """The variance preserving path alpha = cos(phi t), s = sin(phi t), up to the noise level tan(phi) = sigma_max.

    Args:
        sigma_max: noise level at t = 1; infinite for the schedule itself, which ends where the data have vanished.

    Reference: Nichol & Dhariwal 2021, eq. (17) (without its offset at 0); Salimans & Ho 2022, app. B.

    Examples:
        >>> sde, t = sdes.cosine(sigma_max=200.0), jnp.array([0.5, 1.0])
        >>> kernel = sde.transition(t)
        >>> np.allclose(kernel.mean**2 + kernel.covariance, 1.0, atol=1e-3)  # variance preserving
        True
        >>> round(float(sdes.noise_level(sde, t)[1]))
        200
    """
    _known(sigma_max=sigma_max)
    phi = math.atan(float(sigma_max))
    return linear(
        lambda t: -phi * math.tan(phi * t), lambda t: math.sqrt(2 * phi * math.tan(phi * t)), prior=[[1.0]],
        name="cosine",
    )  # fmt: skip


def edm(*, sigma_max: Positive = 80.0) -> Linear:
    """z_t = x_0 + sigma n, sigma = sigma_max t: the schedule of EDM in units in which it ends at t = 1.

    Args:
        sigma_max: noise level at t = 1. Grids and samplers take t_min=0.002 / sigma_max: 1e-3 leaves noise of 0.08.

    Reference: Karras et al. 2022, table 1.

    Examples:
        >>> levels = sdes.noise_level(sdes.edm(sigma_max=80.0), jnp.array([0.25, 0.5, 1.0]))
        >>> [round(float(sigma), 2) for sigma in levels]
        [20.0, 40.0, 80.0]
    """
    _known(sigma_max=sigma_max)
    top = float(sigma_max)
    return linear(lambda t: 0.0, lambda t: top * math.sqrt(2 * t), prior=[[top**2]], name="edm")


def psld_friction(
    gamma: Callable[[Any], Any],
    nu: Callable[[Any], Any],
    *,
    beta: Positive = 8.0,
    m_inv: Positive = 4.0,
    kappa: Positive = 0.04,
) -> Linear:
    """PSLD whose frictions are functions of time; N(0, 1) x N(0, M) is stationary all the same: no friction moves it.

    dx = beta/2 (m_inv m - gamma x) dt + sqrt(beta gamma) dw,  dm = -beta/2 (x + nu m) dt + sqrt(beta nu M) dw.

    Args:
        gamma, nu: functions of t, not negative. Noise enters with their roots, which must be smooth, or begin as
            sqrt(t) at 0: a friction cannot fade as 1 - t, but as (1 - t)^2.
        beta: the rate.
        m_inv: inverse mass; critical damping at one time is m_inv = (gamma - nu)^2 / 4 there.
        kappa: Var[m_0] = kappa M.

    Raises:
        InputError: a friction that is negative; as `linear`.

    Reference: Pandey & Mandt 2023, eq. (10), with constant frictions.

    Examples:
        >>> sde = sdes.psld_friction(lambda t: 0.2 * t, lambda t: 4.0 + 0.2 * t)  # at t = 0 that of CLD
        >>> sde.k, sde.num_noised
        (2, 2)
        >>> (sde.prior_factor() ** 2).round(6).tolist()  # N(0, 1) x N(0, M) all the same
        [[1.0, 0.0], [0.0, 0.25]]
    """

    _known(beta=beta, m_inv=m_inv, kappa=kappa)
    beta, m_inv = float(beta), float(m_inv)  # type: ignore[arg-type]

    def frictions(t: float) -> tuple[float, float]:
        found = float(gamma(t)), float(nu(t))
        for name, value in zip(("gamma", "nu"), found):
            if value < 0:
                raise InputError(f"{name}({t:.4g}) = {value:g}: frictions must be >= 0.")
        return found

    def f(t: float) -> np.ndarray:
        on_x, on_m = frictions(t)
        return beta / 2 * np.array([[-on_x, m_inv], [-1.0, -on_m]])

    def g(t: float) -> np.ndarray:
        on_x, on_m = frictions(t)
        return np.diag(np.sqrt([beta * on_x, beta * on_m / m_inv]))

    return linear(
        f, g, Sigma_0=[[kappa / m_inv]], prior=[[1.0, 0.0], [0.0, 1 / m_inv]], variables=("x", "m"),
        name="psld_friction",
    )  # fmt: skip


def hold(
    *,
    order: Order = 4,
    beta_min: NonNegative = 4.0,
    beta_max: Positive = 4.0,
    m_inv: Positive = 4.0,
    kappa: Positive = 0.04,
) -> Recipe:
    """Higher-order Langevin dynamics of order n, critically damped: a chain x, v, a, ... whose last end is noised.

    In units of their stationary deviations the variables obey, with couplings c_i and a friction xi,

        du_i = beta (c_i u_{i+1} - c_{i-1} u_{i-1}) dt,
        du_n = -beta (c_{n-1} u_{n-1} + xi u_n) dt + sqrt(2 xi beta) dw,

    and c, xi are those for which all eigenvalues are equal: Schwarz's form of (lambda + lambda_0)^n, whose couplings
    follow from Routh's array. c_1 = sqrt(m_inv), as for CLD (order 2) and `third_order` (3), which these are.

    Args:
        order: n, the number of variables, from 2 to 10. (Float32's noise level is right to 1e-6 up to order 6 and to
            3e-4 at 10 for t = 0.001, where the kernels of longer chains are lost in rounding.)
        beta_min, beta_max: rate at t = 0 and t = 1.
        m_inv: inverse of the stationary variance of the auxiliaries.
        kappa: their initial variance in units of that.

    Raises:
        InputError: an order below 2 or above 10; as `recipe`.

    Reference: HOLD++, arXiv 2506.21741 (critical damping of any order); Mou et al. 2021 and Shi & Liu 2024 (order 3);
    Schwarz 1956 (the form).

    Examples:
        >>> sde = sdes.hold(order=4)
        >>> sde.k, sde.num_noised
        (4, 1)
        >>> np.allclose(sdes.hold(order=2).F, sdes.cld().F)
        True
    """
    check_range(order, _ranges.ORDER, "order")
    if not isinstance(order, int | np.integer):
        raise InputError(f"order = {order!r}: must be a whole number.")
    _known(m_inv=m_inv, kappa=kappa)
    couplings, friction = _schwarz(order)
    scale = math.sqrt(m_inv) / couplings[0]
    deviations = np.array([1.0] + [m_inv**-0.5] * (order - 1))
    Q = np.zeros((order, order))
    for i, c in enumerate(couplings):
        Q[i, i + 1] = -scale * c * deviations[i] * deviations[i + 1]
        Q[i + 1, i] = -Q[i, i + 1]
    D = np.zeros((order, order))
    D[-1, -1] = scale * friction * deviations[-1] ** 2
    return recipe(
        D=D,
        Q=Q,
        Sigma_inf=np.diag(deviations**2),
        Sigma_0=np.diag(kappa * deviations[1:] ** 2),
        schedule=LinearSchedule(beta_min=beta_min, beta_max=beta_max),
        num_noised=1,
        variables=("x", *(f"v{i}" for i in range(1, order))),
        name="hold",
    )


def _schwarz(n: int) -> tuple[list[float], float]:
    """Couplings c_1 ... c_{n-1} and friction of the chain whose characteristic polynomial is (lambda + 1)^n.

    The polynomials P_i of the chain's first i variables obey P_{i+1} = lambda P_i + c_i^2 P_{i-1}, and
    (lambda + 1)^n = (lambda + xi) P_{n-1} + c_{n-1}^2 P_{n-2}: Routh's array of the coefficients of alternate powers.
    """
    whole = [float(math.comb(n, i)) for i in range(n + 1)]
    upper, lower = whole[0::2], whole[1::2]
    leading = [upper[0], lower[0]]
    for _ in range(n - 1):
        ratio = upper[0] / lower[0]
        padded = lower + [0.0] * (len(upper) - len(lower))
        upper, lower = lower, [u - ratio * v for u, v in zip(upper[1:], padded[1:])]
        leading.append(lower[0])
    # c_{n-i}^2 = leading[i+1] / leading[i-1]
    squares = [leading[i + 1] / leading[i - 1] for i in range(1, n)]
    return [math.sqrt(c) for c in reversed(squares)], leading[1]
