"""A law as fit.json tells of it, evaluated: numbers in, numbers out, for programs that show fits and do not make them."""

from collections.abc import Mapping

import numpy as np

from vitscale.scaling.forms import FORMS
from vitscale.scaling.solve import Array


def law_at(name: str, params: Mapping[str, float], x: Mapping[str, Array], bound: float | None = None) -> Array | None:
    """What the form `name` with `params`, as people write them, says at `x` {variable: (n,)} -> (n,) of what was fitted.

    `bound` is the metric's, of a form that is linear in a metric that rises.  None: there is no such form, a parameter of it is missing or
    no number that it can have, or `x` lacks one of its variables.
    """
    form = FORMS.get(name)
    if form is None or not set(form.params) <= set(params) or not set(form.variables) <= set(x):
        return None
    centre = dict.fromkeys(form.variables, 0.0)  # where inner and outer numbers are the same but for logarithms
    with np.errstate(all="ignore"):
        theta = np.array([np.log(params[one]) if one in form.positive else params[one] for one in form.params])
        if not np.allclose(form.outer(theta[None], centre)[0], [params[one] for one in form.params], rtol=1e-6, atol=0.0):
            return None
        logs = {one: np.log(np.asarray(x[one], dtype=float)) for one in form.variables}
        found: Array = form.predict(theta[None], logs, centre)[0]
        if form.link == "identity":
            return found if bound is None else bound - found
        return np.exp(found)
