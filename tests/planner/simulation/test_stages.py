"""Pipeline stages in serving: alone nothing changes, full they are all at work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from planner.formats.request import Request
from planner.simulation.arrivals import ClosedLoop, fixed_lengths
from planner.simulation.rank import EngineLimits
from planner.simulation.serving import Options, Pool, Serving
from planner.simulation.stages import Stages
from planner.simulation.step_seconds import LinearSteps, SlowestRank

STEPS = SlowestRank(LinearSteps(8e-3, 2e-5, 3e-5, 2e-8))


@given(st.integers(1, 8), st.lists(st.tuples(st.floats(0, 5), st.floats(0, 2)), max_size=20))
def test_batches_follow_one_another(count: int, batches: list[tuple[float, float]]) -> None:
    stages = Stages(count)
    now = last = busy = 0.0
    for wait, seconds in batches:
        now += wait
        end = stages.pass_end_s(now, seconds)
        assert end >= now + seconds - 1e-9
        assert end >= last - 1e-9
        busy += seconds
        last = end
    # No stage works on two batches at once.
    assert last >= busy / count - 1e-9


def test_a_batch_alone_takes_its_own_seconds() -> None:
    assert Stages(7).pass_end_s(0.1, 0.3) == 0.1 + 0.3
    with pytest.raises(MoesaicError, match="0 pipeline stages"):
        Stages(0)


def serve(pp: int, users: int, count: int = 400, skip: bool = True) -> Serving:
    pool = Pool(EngineLimits(max_num_seqs=8), STEPS, pp=pp)
    source = ClosedLoop(users, fixed_lengths(64, 32))
    return Serving(pool, source, None, Options(max_requests=count, skip_quiet=skip)).run()


def test_one_request_takes_as_long_with_stages_as_without() -> None:
    alone = [
        Serving(Pool(EngineLimits(), STEPS, pp=pp), iter([Request(0.0, 100, 50)])).run()
        for pp in (1, 4)
    ]
    ends = [run.log.close()["e2e_s"][0] for run in alone]
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)


def test_full_stages_serve_as_many_batches_at_once() -> None:
    one, four = serve(1, 8), serve(4, 32)
    rate = [run.log.close().height / run.clock.now for run in (one, four)]
    # Batches in flight are as full and as quick as the single one: the closed form's pp.
    assert rate[1] / rate[0] == pytest.approx(4, rel=0.06)


def test_stages_do_not_help_a_single_user() -> None:
    rate = [serve(pp, 1, 60).clock.now for pp in (1, 4)]
    assert rate[1] == pytest.approx(rate[0], rel=1e-9)


def test_the_shortcut_changes_nothing() -> None:
    fast, slow = serve(2, 12), serve(2, 12, skip=False)
    assert fast.log.close().equals(slow.log.close())
