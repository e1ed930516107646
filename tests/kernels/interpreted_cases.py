"""Cases of the kernels for interpreters, which take seconds for a mixed tree: what others have too is a long test."""

import pytest
from gnp_kernels.blend_update import cases as blend_update_cases
from gnp_kernels.perturb import cases as perturb_cases

LONG = (
    *(f"{shapes} {rule}" for shapes in ("ragged", "aligned", "mixed") for rule in ("sgd", "momentum")),
    *("aligned nesterov", "mixed nesterov bfloat16", "mixed nesterov float32 {'c"),
    *("mixed to bf16", "mixed adaptive float", "aligned to bf16", "aligned adaptive f", "many small f32 float32"),
    "mixed adamw float32 {'c1': 1.0, 'c2'",
)
"""Beginnings of names. Nesterov's rule and AdamW's have all arithmetic of the others, as `adaptive to bf16` has; the
numbers of a call are those of AdamW's rows with all types of leaves."""


def _params(cases):
    return [
        pytest.param(case, id=case.name, marks=pytest.mark.long if case.name.startswith(LONG) else []) for case in cases
    ]


UPDATES = _params(blend_update_cases.cases())
PERTURB = _params(perturb_cases.cases())
