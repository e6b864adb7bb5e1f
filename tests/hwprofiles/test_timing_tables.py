"""Tables of measured times: physics where shapes end, measured cells where they lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.timing.kriging import Points, neighbours
from hwprofiles.timing.places import Place
from hwprofiles.timing.profile import STEP, find, pack, relatives, unpack
from hwprofiles.timing.rows import Work
from hwprofiles.timing.skew import alpha_of, busiest, busiest_of
from hwprofiles.timing.tables import Bands, Physics, Table, residual_of, running_median


def table(residual, shapes=((10.0, 10.0), (12.0, 10.0), (10.0, 12.0), (12.0, 12.0))):
    return Table(
        kernel="gemm", keys={"dtype": "bf16"}, physics=Physics(1e-6, 0.7, 0.8),
        shapes=np.array(shapes), outer=np.array([0.0]), inner=np.array([0.0, 2.0, 6.0]),
        residual=np.asarray(residual, dtype=np.float32),
        bands=Bands((0.2,), (-0.1, -0.2, -0.3), (0.1, 0.2, 0.3)),
    )  # fmt: skip


def place(shape, inner):
    n = len(inner)
    return Place(np.tile(np.array(shape, dtype=float), (n, 1)), np.zeros(n), np.array(inner))


SLOPE = np.tile(np.array([[0.0, 0.2, 0.6]]), (4, 1, 1)).reshape(4, 1, 3)


def test_measured_cells_come_back_and_sizes_between_are_interpolated():
    found = residual_of(table(SLOPE), place((10, 10), [0.0, 2.0, 4.0]))
    assert found.typical == pytest.approx([0.0, 0.2, 0.4])
    assert found.measured.tolist() == [True, True, False]
    assert (found.beyond == 0).all()


def test_a_shape_between_lies_between_and_knows_it_was_not_measured():
    steps = SLOPE + np.array([0.0, 0.4, 0.0, 0.4])[:, None, None]
    found = residual_of(table(steps), place((11, 11), [0.0]))
    assert found.typical[0] == pytest.approx(0.2, abs=1e-6)
    assert found.nearest[0] > 0
    assert not found.measured[0]


def test_outside_is_counted_in_doublings_and_held_at_the_edge():
    found = residual_of(table(SLOPE), place((10, 10), [9.0]))
    assert found.beyond[0] == pytest.approx(3)
    assert found.typical[0] == pytest.approx(0.6)
    wider = residual_of(table(SLOPE), place((15, 10), [0.0]))
    assert wider.beyond[0] == pytest.approx(3)


def test_outliers_are_drawn_in_only_where_the_table_says_so():
    wild = SLOPE * 0 + np.array([0.0, 0.0, 0.0, 2.0])[:, None, None]
    kept = residual_of(table(wild), place((11, 11), [0.0])).typical[0]
    tame = Table(**{**vars(table(wild)), "outlier": 0.2})
    assert residual_of(tame, place((11, 11), [0.0])).typical[0] < kept


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 8), st.floats(0, 8)), min_size=5, max_size=25, unique=True))
def test_weights_sum_to_one_and_known_points_stand_for_themselves(points):
    known = np.unique(np.round(np.array(points), 1), axis=0)
    index, weight, nearest = neighbours(Points.plain(known), Points.plain(known), 4)
    assert weight.sum(axis=1) == pytest.approx(np.ones(len(known)))
    assert (nearest < 1e-3).all()
    chosen = np.take_along_axis(index, weight.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert (chosen == np.arange(len(known))).all()


def test_points_set_apart_are_not_used():
    known = Points.plain(np.array([[0.0], [1.0], [2.0], [3.0]]))
    index, _, nearest = neighbours(known, known, 2, np.eye(4, dtype=bool))
    assert all(i not in row for i, row in enumerate(index))
    assert nearest == pytest.approx(np.ones(4))


def test_physics_takes_the_longest_part_and_the_fixed_cost():
    work = Work(np.array([7e-4, 0.0]), np.array([0.0, 8e-4]))
    assert Physics(1e-6, 0.7, 0.8).seconds(work) == pytest.approx([1.001e-3, 1.001e-3])
    equal = Physics(0.0, 1.0, 1.0).seconds(Work(np.array([1e-3]), np.array([1e-3])))
    assert equal[0] == pytest.approx(1e-3 * 2**0.25)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=2, max_size=40))
def test_packing_rounds_by_at_most_half_a_step(values):
    residual = np.array(values, dtype=np.float32).reshape(1, 1, -1)
    assert np.abs(unpack(pack(residual)) - residual).max() <= STEP / 2 + 1e-4


def test_bands_grow_with_distance():
    bands = Bands((0.2,), (-0.1, -0.2, -0.3), (0.1, 0.2, 0.3))
    low, high = bands.offsets(np.array([0.0, 0.1, 0.5]))
    assert low.tolist() == [-0.1, -0.2, -0.3]
    assert high.tolist() == [0.1, 0.2, 0.3]


def test_balanced_load_is_busy_only_where_pairs_are_fewer_than_ranks():
    assert busiest(0, 1024, 8, 256, 8) == (1.0, 32.0)
    assert busiest(0, 1, 8, 256, 32)[0] == pytest.approx(4)
    assert busiest(1.2, 1024, 8, 256, 1)[0] == pytest.approx(1, abs=0.01)


def test_steeper_loads_and_more_ranks_are_busier():
    ratios = [busiest(alpha, 4096, 8, 256, 16)[0] for alpha in (0.0, 0.6, 1.01, 1.2)]
    assert ratios == sorted(ratios)
    spread = [busiest(1.2, 4096, 8, 256, ranks)[0] for ranks in (2, 8, 32)]
    assert spread == sorted(spread)
    assert (
        busiest_of([np.array([1.2]), *map(np.array, ([4096], [8], [256], [8]))])[0][0]
        == (spread[1])
    )


def test_the_exponent_is_found_again_from_the_busiest_rank():
    columns = [np.array([4096.0]), np.array([8.0]), np.array([256.0]), np.array([16.0])]
    busy = busiest(1.2, 4096, 8, 256, 16)[0]
    assert alpha_of(np.array([busy]), columns)[0] == pytest.approx(1.2)
    assert alpha_of(np.array([1.0]), columns)[0] == 0


def test_tables_are_borrowed_in_order_and_say_so():
    exact = find("h200-sxm", "vllm", "gemm", (("dtype", "bf16"),))
    assert exact is not None
    assert (exact.widen, exact.because) == (0, ())
    borrowed = find("h20", "vllm", "gemm", (("dtype", "bf16"),))
    assert borrowed is not None
    assert "measured on h200-sxm" in borrowed.because
    assert borrowed.table.physics.compute_share == 0.9
    assert relatives()["h20"] == ("h200-sxm", "h100-sxm")
    near = find("h200-sxm", "vllm", "gemm", (("dtype", "int8"),))
    assert near is not None
    assert near.widen > 0
    assert find("zcu102", "vllm", "gemm", (("dtype", "bf16"),)) is None


MODELS = np.array([[0.0], [1.0], [0.5], [1.5]]), np.array([[7.0], [7.0], [9.0], [9.0]])
"""Two models, the second between the shapes of the first."""


def test_shapes_of_one_kind_say_more_than_nearer_ones_of_another():
    known = Points(*MODELS, jump=2.0)
    wanted = Points(np.array([[0.4]]), np.array([[7.0]]), jump=2.0)
    index, weight, nearest = neighbours(wanted, known, 4)
    by_shape = dict(zip(index[0].tolist(), weight[0].tolist(), strict=True))
    assert by_shape[0] + by_shape[1] > 0.8
    assert nearest[0] == pytest.approx(0.4)
    plain = neighbours(Points.plain(wanted.at), Points.plain(known.at), 4)
    assert plain[0][0][plain[1][0].argmax()] == 2


def test_a_kind_nobody_measured_takes_all_as_they_lie():
    known = Points(*MODELS, jump=2.0)
    index, weight, nearest = neighbours(
        Points(np.array([[0.4]]), np.array([[8.0]]), jump=2.0), known, 4
    )
    plain = neighbours(Points.plain(np.array([[0.4]])), Points.plain(known.at), 4)
    assert weight[0][index[0].argsort()] == pytest.approx(plain[1][0][plain[0][0].argsort()])
    assert nearest[0] == pytest.approx(2.1), "and knows that it is far"


def test_what_fits_the_cache_is_read_faster():
    physics = Physics(0.0, 1.0, 1.0, cache_s=1e-4, cache_ratio=4.0)
    seconds = physics.seconds(Work(np.zeros(3), np.array([1e-6, 1e-4, 1e-2])))
    assert seconds[0] == pytest.approx(0.25e-6, rel=1e-3)
    assert seconds[1] == pytest.approx(0.625e-4)
    assert seconds[2] == pytest.approx(1e-2, rel=1e-3)
    assert (np.diff(seconds) > 0).all()


def test_odd_rows_stay_where_they_were_measured():
    odd = SLOPE * 0
    odd[:, 0, 1] = 2.0
    smoothed = Table(**{**vars(table(odd)), "running": 3})
    assert residual_of(smoothed, place((11, 11), [2.0])).typical[0] == pytest.approx(0.0)
    assert residual_of(smoothed, place((10, 10), [2.0])).typical[0] == pytest.approx(2.0)


def test_a_running_median_keeps_its_length():
    cells = np.array([[[0.0, 9.0, 1.0, 2.0, 3.0]]])
    assert running_median(cells, 1) is cells
    assert running_median(cells, 3)[0, 0].tolist() == [0, 1, 2, 2, 3]
