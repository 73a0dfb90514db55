"""Parameters: views over flat buffers, and the states of their gradients."""

from __future__ import annotations

import numpy as np
import pytest

from pynlm.layers import Group, Parameter, Parameters
from pynlm.train.optimisers import SGD


def make(dtype: type = np.float64) -> Parameters:
    return Parameters(
        [
            ("table", (11, 3), "embedding", True),
            ("w", (5, 7), "rest"),
            ("b", (5,), "rest"),
            ("v", (3, 2), "other"),
        ],
        dtype,
    )


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_views_are_aligned_and_share_the_flat_buffer(dtype: type) -> None:
    p = make(dtype)
    assert list(p) == ["table", "w", "b", "v"] and len(p) == 4
    for q in p.values():
        for view, flat in ((q.data, p.data), (q.grad, p.grad)):
            assert view.ctypes.data % 64 == 0 and np.shares_memory(view, flat)
            assert view.ctypes.data == flat[q.start :].ctypes.data
        q.data.fill(1)
    assert p.data.sum() == p.count == 33 + 35 + 5 + 6
    assert p.data.dtype == dtype


def test_first_target_is_the_gradient_itself() -> None:
    p = make()["w"]
    with p.target() as g:
        assert g.ctypes.data == p.grad.ctypes.data
        g[...] = 2
    assert p.state == "dense"
    with p.target() as g:
        assert g.ctypes.data != p.grad.ctypes.data
        g[...] = 3
    assert (p.grad == 5).all()


def test_zero_grad_marks_unset_and_touches_nothing() -> None:
    p = make()
    with p["w"].target() as g:
        g[...] = 2
    p.zero_grad()
    assert p["w"].state == "unset" and (p["w"].grad == 2).all()
    with p["w"].target() as g:
        g[...] = 1
    assert (p["w"].grad == 1).all()
    p["w"].zero_grad()
    assert p["w"].state == "unset"
    assert (p["w"].densify() == 0).all()


@pytest.mark.parametrize("before", [False, True])
def test_an_exception_leaves_the_gradient_as_it_was(before: bool) -> None:
    p = make()["w"]
    if before:
        p.add(np.ones(p.data.shape))
    with pytest.raises(ZeroDivisionError), p.target() as g:
        g[...] = 7
        raise ZeroDivisionError
    assert p.state == ("dense" if before else "unset")
    assert (p.densify() == (1 if before else 0)).all()


def test_rows_are_kept_as_rows_and_coalesced() -> None:
    p = make()["table"]
    assert p.rows[0].shape == (0,) and p.rows[1].shape == (0, 3)
    p.add_rows(ids(1, 4), np.array([[1.0] * 3, [2.0] * 3]))
    assert p.state == "rows" and p.rows[0].tolist() == [1, 4]
    p.add_rows(ids(0, 4, 10), np.array([[5.0] * 3, [6.0] * 3, [7.0] * 3]))
    rows, drows = p.rows
    assert rows.dtype == np.int32 and rows.tolist() == [0, 1, 4, 10]
    assert drows[:, 0].tolist() == [5, 1, 8, 7]
    dense = p.densify()
    assert p.state == "dense" and dense[:, 2].tolist() == [5, 1, 0, 0, 8, 0, 0, 0, 0, 0, 7]
    with pytest.raises(RuntimeError, match="table is dense"):
        p.rows  # noqa: B018


def test_rows_after_zero_grad_start_anew() -> None:
    for zero in (lambda p: p.zero_grad(), lambda p: p["table"].zero_grad()):
        p = make()
        p["table"].add_rows(ids(1), np.ones((1, 3)))
        zero(p)
        assert p["table"].state == "unset" and len(p["table"].rows[0]) == 0
        p["table"].add_rows(ids(2), np.ones((1, 3)))
        assert p["table"].rows[0].tolist() == [2]


@pytest.mark.parametrize("dense_first", [False, True])
def test_rows_and_dense_add_up(dense_first: bool) -> None:
    for name in ("table", "v"):
        p = make()[name]
        width = p.data.shape[1]
        want = np.ones(p.data.shape)
        want[2] += 3
        if dense_first:
            p.add(np.ones(p.data.shape))
        p.add_rows(ids(2), np.full((1, width), 3.0))
        if not dense_first:
            p.add(np.ones(p.data.shape))
        assert p.state == "dense"
        np.testing.assert_array_equal(p.grad, want)


def test_rows_into_a_dense_target_are_kept_by_target() -> None:
    p = make()["table"]
    p.add_rows(ids(2), np.full((1, 3), 3.0))
    with p.target() as g:
        g[...] = 1
    assert p.grad[:, 0].tolist() == [1, 1, 4, *[1] * 8]


def test_claim_of_an_unset_gradient_is_the_gradient() -> None:
    p = make()["w"]
    claim = p.claim()
    assert claim.array.ctypes.data == p.grad.ctypes.data
    claim.array[...] = 3
    assert p.state == "unset"
    claim.commit()
    assert p.state == "dense" and (p.grad == 3).all()
    other = p.claim()
    assert other.array.ctypes.data != p.grad.ctypes.data
    other.array[...] = 2
    assert (p.grad == 3).all()
    other.commit(0.5)
    assert (p.grad == 4).all()


def test_scale_of_an_owned_claim_is_applied_in_place() -> None:
    p = make()["w"]
    claim = p.claim()
    claim.array[...] = 3
    claim.commit(2.0)
    assert (p.grad == 6).all()


def test_dropped_claim_leaves_no_trace() -> None:
    p = make()["w"]
    claim = p.claim()
    claim.array[...] = 3
    del claim
    assert p.state == "unset"
    again = p.claim()
    assert again.array.ctypes.data == p.grad.ctypes.data
    del again
    assert (p.densify() == 0).all()


def test_two_claims_in_either_order() -> None:
    for order in ((0, 1), (1, 0)):
        p = make()["w"]
        claims = [p.claim(), p.claim()]
        for i, claim in enumerate(claims):
            claim.array[...] = 10.0**i
        claims[order[0]].commit(2.0)
        assert (p.grad == 2.0 * 10.0 ** order[0]).all()
        claims[order[1]].commit(3.0)
        assert (p.grad == [2 + 30, 20 + 3][order[0]]).all()


@pytest.mark.parametrize("how", ["target", "add", "densify", "rows", "blocks"])
def test_a_claim_makes_way(how: str) -> None:
    parameters = make()
    p = parameters["v"]
    claim = p.claim()
    claim.array[...] = 5
    if how == "target":
        with p.target() as g:
            g[...] = 1
    elif how == "add":
        p.add(np.ones((3, 2)))
    elif how == "rows":
        p.add_rows(ids(0, 1, 2), np.ones((3, 2)))
    elif how == "blocks":
        parameters.blocks()
    else:
        p.densify()
    before = 0 if how in ("densify", "blocks") else 1
    assert p.state == "dense" and (p.grad == before).all()
    claim.commit(2.0)
    assert (p.grad == before + 10).all()


def test_a_claim_outlives_zero_grad() -> None:
    """Forward, zero_grad, backward: the usual order elsewhere."""
    parameters = make()
    claim = parameters["w"].claim()
    claim.array[...] = 5
    parameters.zero_grad()
    claim.commit()
    assert parameters["w"].state == "dense" and (parameters["w"].grad == 5).all()


def test_blocks_merge_neighbours_of_like_groups() -> None:
    p = make()
    with p["b"].target() as g:
        g[...] = 1
    p["w"].grad.fill(9)  # leftovers of an unset gradient
    (block,) = p.blocks()
    assert (block.start, block.stop) == (p["w"].start, p.data.size)
    assert p.grad[block.start : block.stop].sum() == 5
    assert [t.name for t in p.tables()] == ["table"]
    p.groups["other"].lr = 0.1
    assert [b.group.name for b in p.blocks()] == ["rest", "other"]
    p["table"].densify()
    assert [b.group.name for b in p.blocks()] == ["embedding", "other"]
    p.groups["rest"].frozen = p.groups["embedding"].frozen = True
    assert [b.group.frozen for b in p.blocks()] == [True, False]
    assert p.tables() == []


def test_a_spec_may_say_how_its_group_is_treated() -> None:
    """By a group, of which each `Parameters` has its own."""
    specs = [
        ("w", (5, 7), "rest"),
        ("c", (1,), Group("constant", decay=False)),
        ("b", (5,), "rest"),
    ]
    p, other = Parameters(specs), Parameters(specs)
    assert list(p.groups) == ["rest", "constant"] and p["b"].group is p["w"].group
    assert [b.group.decay for b in p.blocks()] == [True, False, True]
    p.groups["constant"].frozen = True
    assert p["c"].group.frozen and not other["c"].group.frozen


def test_parameter_over_foreign_arrays() -> None:
    data, grad = np.ones((3, 2)), np.empty((3, 2))
    p = Parameter("w", data, grad, Group("all"))
    with p.target() as g:
        g[...] = 4
    assert (grad == 4).all() and p.data is data
    assert repr(p) == "Parameter(w, float64 [3, 2], gradient dense)"


def test_load_state_dict() -> None:
    p, q = make(), make()
    rng = np.random.default_rng(0)
    state = {n: rng.standard_normal(x.data.shape) for n, x in p.items()}
    p.load_state_dict(state)
    q.load_state_dict(p.state_dict())
    for n in state:
        np.testing.assert_array_equal(q[n].data, state[n])
        assert not np.shares_memory(q[n].data, p[n].data)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("w"), KeyError, r"missing \['w'\], unknown none"),
        (lambda s: s.update(z=s["w"]), KeyError, r"missing none, unknown \['z'\]"),
        (lambda s: s.update(v=np.ones((2, 3))), ValueError, r"v must be float64 \[3, 2\], got fl"),
        (
            lambda s: s.update(v=np.ones((3, 2), np.float32)),
            TypeError,
            r"v must be float64 \[3, 2\], got float32 \[3, 2\]",
        ),
        (lambda s: s.update(v=[[1.0]]), TypeError, r"v must be float64 \[3, 2\], got list"),
    ],
)
def test_load_state_dict_errors_write_nothing(
    change: object, error: type[Exception], message: str
) -> None:
    p = make()
    state = {n: np.ones(x.data.shape) for n, x in p.items()}
    change(state)  # type: ignore[operator]
    with pytest.raises(error, match=f"load_state_dict: .*{message}"):
        p.load_state_dict(state)
    assert (p.data == 0).all()


def test_construction_errors() -> None:
    with pytest.raises(ValueError, match="'w' is given twice"):
        Parameters([("w", (2,), "a"), ("w", (2,), "a")])
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got int32"):
        Parameters([("w", (2,), "a")], np.int32)
    with pytest.raises(ValueError, match=r"w is sparse and must be \[V, D\], got \[2\]"):
        Parameters([("w", (2,), "a", True)])


def test_packed_weights_are_read_only_until_unpacked() -> None:
    p = make()
    w = p["w"]
    assert not p.packed and w.for_product(8) is w.data
    p.pack()
    assert p.packed
    assert w.for_product(4) is w.data  # few rows read weights as they stand
    packed = w.for_product(5)
    assert packed is w.for_product(500) is not w.for_product(5, gates=1)
    for array in (w.data, p.data, packed):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(RuntimeError, match=r"load_state_dict: the weights are packed.*unpack"):
        p.load_state_dict({name: np.ones_like(q.data) for name, q in p.items()})
    p.unpack()
    w.data.fill(2)
    assert not p.packed and w.for_product(8) is w.data and (p.data[w.start] == 2)


def test_an_update_of_packed_weights_is_refused() -> None:
    p = make()
    p["w"].add(np.ones((5, 7)))
    p.pack()
    before = p.data.copy()
    with pytest.raises(ValueError, match="read-only"):
        SGD(p).step(lr=0.1)
    np.testing.assert_array_equal(p.data, before)
