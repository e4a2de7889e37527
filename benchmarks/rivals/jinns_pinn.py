"""jinns on the common problems: its second-order optimisers, float64, hard conditions, in JAX. jinns==1.9.3 jax==0.8.1

It trains inside one compiled program. So a short run tells the iterations that fit into the given seconds, compilation
not counted, and the weights of iterations kept on the way tell the errors; iterations count as equally long. The better
one of natural gradients and self-scaled Broyden is reported.
"""

import contextlib
import io
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jinns
import numpy as np
from pinn import HALF, VISCOSITY, Course, given

jax.config.update("jax_enable_x64", True)
PROBLEM, SECONDS, SEED, DEVICE, FILE = given()
NU, L = VISCOSITY[PROBLEM], HALF[PROBLEM]
SHORT = 10


class Transport(jinns.loss.PDENonStatio):
    """The equation."""

    def equation(self, t_x: jax.Array, u: jinns.nn.PINN_MLP, params: jinns.parameters.Params) -> jax.Array:
        """Return the residual."""
        value = lambda z: jnp.squeeze(u(z, params))  # noqa: E731
        slopes = jax.grad(value)
        speed = value(t_x) if PROBLEM == "burgers" else -t_x[1]
        bend = jax.grad(lambda z: slopes(z)[1])(t_x)[1]
        first = slopes(t_x)
        return (first[0] + speed * first[1] - NU * bend)[None]


def conditions(t_x: jax.Array, out: jax.Array, params: jinns.parameters.Params) -> jax.Array:
    """Return the output with its initial state and ends."""
    t, x = t_x[0], t_x[1]
    start = -jnp.sin(jnp.pi * x) if PROBLEM == "burgers" else jnp.exp(-2 * x**2)
    return start + t * (1 - (x / L) ** 2) * out


layers = [(eqx.nn.Linear, 2, 20), (jax.nn.tanh,), (eqx.nn.Linear, 20, 20), (jax.nn.tanh,), (eqx.nn.Linear, 20, 20),
          (jax.nn.tanh,), (eqx.nn.Linear, 20, 1)]  # fmt: skip
key, first_key = jax.random.split(jax.random.PRNGKey(SEED))
u, weights = jinns.nn.PINN_MLP.create(
    key=first_key, eqx_list=tuple(layers), eq_type="PDENonStatio", output_transform=conditions,
    input_transform=lambda t_x, params: jnp.array([2 * t_x[0] - 1, t_x[1] / L]),
)  # fmt: skip
start = jinns.parameters.Params(nn_params=weights, eq_params={"nu": jnp.array(NU)})
data = jinns.data.CubicMeshPDENonStatio(
    key=key, n=2500, nb=None, ni=1, dim=1, min_pts=(-L,), max_pts=(L,), tmin=0.0, tmax=1.0, method="uniform",
)  # fmt: skip
loss = jinns.loss.LossPDENonStatio(
    u=u, dynamic_loss=Transport(), params=start, loss_weights=jinns.loss.LossWeightsPDENonStatio(dyn_loss=1.0)
)
tracked = jinns.parameters.Params(nn_params=jax.tree.map(lambda leaf: True, weights), eq_params={"nu": None})


def callback_value(params: object, loss: object, batch: object) -> jax.Array:
    """Return the loss, for line searches; jinns takes callbacks of such names only."""
    return loss.evaluate(params, batch)[0]


def callback_grad(params: object, loss: object, batch: object) -> object:
    """Return the gradient of the loss."""
    return jax.grad(lambda p: loss.evaluate(p, batch)[0])(params)


named = jinns.solver.GetJinnsVariableName
BROYDEN = {
    "value": named("train_loss_value"), "grad_pt": named("grads"), "loss": named("loss"), "batch": named("batch"),
    "value_fn": callback_value, "grad_fn": callback_grad,
}  # fmt: skip


def train(optimizer: object, iterations: int, extra: dict[str, object] | None) -> tuple[float, object, int]:
    """Return the seconds of the iterations, the weights after each, and how many there were before weights were NaN."""
    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        result = jinns.solve(init_params=start, data=data, loss=loss, optimizer=optimizer, n_iter=iterations,
                             tracked_params=tracked, print_loss_every=10**9,
                             extra_optax_args_and_kwargs=extra)  # fmt: skip
        jax.block_until_ready(result[0])
    took = re.findall(r"(?i)train\w*[^\n]*?took[^\d]*([\d.e+-]+)", words.getvalue())
    if not took:
        raise SystemExit(f"jinns does not tell how long it trained: {words.getvalue()[-500:]}")
    return float(took[-1]), result[6], int(np.count_nonzero(np.nan_to_num(np.asarray(result[1]))))


@jax.jit
def predict(params: jinns.parameters.Params, points: jax.Array) -> jax.Array:
    """Return u at (t, x)."""
    return jax.vmap(lambda z: u(z, params))(points)


def course_of(optimizer: object, extra: dict[str, object] | None = None) -> Course:
    """Return the course of the error of an optimiser."""
    short, _, _ = train(optimizer, SHORT, extra)
    took, stored, iterations = train(optimizer, max(SHORT, int(SECONDS / short * SHORT)), extra)
    course = Course(FILE, SECONDS)
    points = jnp.array(course.points[:, ::-1])
    for index in sorted({min(iterations - 1, int(1.25**k)) for k in range(80)}):
        now = jax.tree.map(lambda leaf, at=index: leaf[at], stored.nn_params)
        course.add(took * (index + 1) / iterations, np.asarray(
            predict(jinns.parameters.Params(nn_params=now, eq_params=start.eq_params), points)))  # fmt: skip
    return course


courses = {
    "natural gradients": course_of(jinns.optimizers.vanilla_ngd()),
    "self-scaled Broyden": course_of(jinns.optimizers.self_scaled_bfgs_or_broyden(broyden=True), BROYDEN),
}
errors = {name: min(error for _, error in course.curve) for name, course in courses.items()}
best = min(errors, key=errors.get)
others = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
courses[best].report(f"3 x 20 tanh, float64, 2500 points, hard conditions, {best} ({others}), compilation not counted")
