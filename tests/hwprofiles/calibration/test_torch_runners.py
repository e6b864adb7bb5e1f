"""Torch runners: CUDA and NPU with a stand-in for torch, the CPU with torch where there is one."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hwprofiles.calibration import runners
from hwprofiles.calibration.cases import cases, collective_cases
from hwprofiles.calibration.network import rank as rank_module
from hwprofiles.calibration.network.orders import all_to_all
from hwprofiles.calibration.runners import COLLECTIVE_LIBRARIES, ranks_here, torch_cuda, torch_npu
from hwprofiles.calibration.runners.base import Prepared
from hwprofiles.calibration.runners.torch_cuda import FORMS, TorchCuda
from hwprofiles.calibration.runners.torch_kernels import BUILDERS, TorchKernels
from hwprofiles.calibration.runners.torch_npu import TorchNpu
from hwprofiles.errors import MoesaicError
from hwprofiles.kernels import COLLECTIVES


class FakeCuda:
    """Keeps a diary of what a real torch.cuda would have been asked to do."""

    def __init__(self, *, captures: bool = True) -> None:
        self.diary: list[str] = []
        self.captures = captures
        self.side = SimpleNamespace(wait_stream=lambda _: self.diary.append("wait"))

    def module(self) -> Any:
        cuda = SimpleNamespace(
            Stream=lambda: self.side,
            current_stream=lambda: SimpleNamespace(wait_stream=lambda _: None),
            stream=self._within("side stream"), graph=self._graph,
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: self.diary.append("replay")),
            Event=self._event, synchronize=lambda: self.diary.append("synchronize"),
            get_device_properties=lambda _: SimpleNamespace(L2_cache_size=100),
            get_device_name=lambda _: "NVIDIA H100 80GB HBM3", device_count=lambda: 8,
        )  # fmt: skip
        trash = SimpleNamespace(zero_=lambda: self.diary.append("flush"))
        return SimpleNamespace(
            __version__="9.9", cuda=cuda, npu=cuda,
            zeros=lambda count, **_: self._sized(trash, count),
            version=SimpleNamespace(cuda="13.2"),
            backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 92600)),
        )  # fmt: skip

    def _sized(self, trash: Any, count: int) -> Any:
        self.diary.append(f"{count} floats to flush with")
        return trash

    def _within(self, name: str) -> Any:
        @contextlib.contextmanager
        def within(_: object) -> Iterator[None]:
            self.diary.append(name)
            yield

        return within

    @contextlib.contextmanager
    def _graph(self, _: object, *, stream: object) -> Iterator[None]:
        assert stream is self.side  # the one that the operation has run on
        self.diary.append("capture")
        yield
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")

    def _event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        return SimpleNamespace(
            record=lambda: self.diary.append("record"),
            synchronize=lambda: self.diary.append("wait for event"),
            elapsed_time=lambda _: 2.5,
        )


def prepared(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> tuple[TorchCuda, Prepared]:
    runner = TorchCuda("cuda", torch=fake.module())
    monkeypatch.setitem(BUILDERS, "gemm", lambda *_: lambda: fake.diary.append("run"))
    return runner, runner.prepare({"kernel": "gemm"})


def test_a_gpu_sample_flushes_then_replays_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush is queued before the first event, so that the replay's launch hides behind it."""
    fake = FakeCuda()
    runner, ready = prepared(fake, monkeypatch)
    assert "50 floats to flush with" in fake.diary
    opened = fake.diary.index("wait")
    assert fake.diary[opened:] == ["wait", "side stream", "run", "capture", "run"]
    fake.diary.clear()
    assert runner.sample(ready) == 2.5e-3
    assert fake.diary == ["flush", "record", "replay", "record", "wait for event"]


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(captures=False)
    runner, ready = prepared(fake, monkeypatch)
    fake.diary.clear()
    runner.sample(ready)
    assert fake.diary == ["flush", "record", "run", "record", "wait for event"]


def test_a_gpus_environment_names_versions_and_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cuda, "_smi", lambda query: f"<{query}>")
    runner = TorchCuda("cuda", torch=FakeCuda().module())
    known = runner.environment()
    assert known.accelerator == "NVIDIA H100 80GB HBM3"
    assert known.driver == "<driver_version>"
    assert known.libraries == {
        "torch": "9.9", "cuda": "13.2", "cudnn": "92600",
        "clocks": "<clocks.max.sm,clocks.max.mem>",
    }  # fmt: skip
    runner.synchronise()
    assert ranks_here(runner) == 8
    assert COLLECTIVE_LIBRARIES[runner.name] == "nccl"


def test_smi_is_empty_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch_cuda.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError)
    )
    assert torch_cuda._smi("driver_version") == ""


def test_what_torch_refuses_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("addmm_impl_cpu_ not\nimplemented for 'Half'")

    runner = TorchCuda("cuda", torch=FakeCuda().module())
    monkeypatch.setitem(BUILDERS, "gemm", refuse)
    with pytest.raises(MoesaicError, match="refuses this row: addmm_impl_cpu_ not implemented"):
        runner.prepare({"kernel": "gemm"})


def test_an_npu_sample_uses_its_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    runner = TorchNpu(torch=fake.module())
    assert os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"
    monkeypatch.setitem(BUILDERS, "gemm", lambda *_: lambda: fake.diary.append("run"))
    ready = runner.prepare({"kernel": "gemm"})
    assert fake.diary[-2:] == ["run", "synchronize"]
    fake.diary.clear()
    assert runner.sample(ready) == 2.5e-3
    assert fake.diary == ["flush", "record", "run", "record", "wait for event"]
    assert runner.environment().libraries["torch"] == "9.9"
    monkeypatch.setitem(BUILDERS, "gemm", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(MoesaicError, match="torch_npu refuses this row: no"):
        runner.prepare({"kernel": "gemm"})


def test_cann_is_read_from_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    assert torch_npu.cann_version() == ""
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "ascend_toolkit_install.info").write_text("a=1\nversion=8.3.RC1\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert torch_npu.cann_version() == "8.3.RC1"


def test_an_npu_is_asked_for_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch_cuda.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch_npu, "probe", lambda code: asked.append(code) or "no CANN")
    assert torch_npu.unusable() == "no CANN"
    assert "import torch, torch_npu" in asked[0]


class FakeGroup:
    """torch.distributed of one rank of four: what was asked, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def get_process_group_ranks(self, _: object) -> list[int]:
        return [0, 1, 2, 3]

    def get_rank(self) -> int:
        return 1

    def irecv(self, _: object, src: int, group: object) -> Any:
        self.asked.append(("irecv", src, group))
        return SimpleNamespace(wait=lambda: self.asked.append(("received", src)))

    def isend(self, _: object, dst: int, group: object) -> Any:
        self.asked.append(("isend", dst, group))
        return SimpleNamespace(wait=lambda: self.asked.append(("sent", dst)))

    def all_to_all_single(self, output: object, given: object, *, group: object) -> None:
        self.asked.append(("all_to_all_single", output, given, group))


class Parts:
    """A tensor that falls into parts and notes what was copied."""

    def __init__(self) -> None:
        self.copied: list[int] = []

    def chunk(self, count: int) -> list[Any]:
        return [SimpleNamespace(copy_=lambda _, i=i: self.copied.append(i)) for i in range(count)]


@pytest.mark.parametrize("device", ["cuda", "npu"])
def test_accelerators_exchange_with_their_librarys_own(device: str) -> None:
    """NCCL and HCCL: a receive posted before its peer's send holds the stream for ever."""
    group = FakeGroup()
    kernels = TorchKernels(SimpleNamespace(distributed=group), device, "the group")
    received, sent = object(), object()
    all_to_all(kernels, received, sent)
    assert group.asked == [("all_to_all_single", received, sent, "the group")]


def test_gloo_posts_its_receives_first() -> None:
    group, received = FakeGroup(), Parts()
    kernels = TorchKernels(SimpleNamespace(distributed=group), "cpu", "the group")
    all_to_all(kernels, received, Parts())
    names = [asked[0] for asked in group.asked]
    assert names == ["irecv"] * 3 + ["isend"] * 3 + ["received"] * 3 + ["sent"] * 3
    assert [asked[1] for asked in group.asked[:3]] == [2, 3, 0]
    assert received.copied == [1]  # its own part


@pytest.mark.parametrize(("backend", "device"), [("nccl", "cuda"), ("hccl", "npu")])
def test_a_rank_takes_its_accelerator_before_it_joins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str, device: str
) -> None:
    """torch_npu is imported after torch and before anything else; set_device comes before the group
    (torch.distributed notes on NCCL; torch_npu's own HCCL tests)."""
    diary: list[Any] = []
    accelerator = SimpleNamespace(
        set_device=lambda n: diary.append(("set_device", n)),
        synchronize=lambda: diary.append("synchronize"),
    )
    group = SimpleNamespace(
        init_process_group=lambda *a, **k: diary.append(("init", *a, k["rank"], k["world_size"])),
        new_group=lambda ranks: diary.append(("new_group", ranks)) or "members",
        get_world_size=lambda _: 2,
        all_to_all_single=lambda *_, group: diary.append(("all_to_all_single", group)),
    )
    torch = SimpleNamespace(
        set_num_threads=lambda _: None, distributed=group, int8=None,
        float32=SimpleNamespace(itemsize=4),
        rand=lambda *_, **k: SimpleNamespace(to=lambda _: ("on", k["device"])),
        empty_like=lambda given: given, **{device: accelerator},
    )  # fmt: skip
    imported = {"torch": torch}
    monkeypatch.setattr(
        rank_module.importlib, "import_module",
        lambda name: diary.append(("import", name)) or imported.get(name),
    )  # fmt: skip
    rank = rank_module.Rank(1, 2, tmp_path / "store", backend)
    assert os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"
    plugin = [("import", "torch_npu")] if device == "npu" else []
    assert diary == [("import", "torch"), *plugin, ("set_device", 1), ("init", backend, 1, 2)]
    diary.clear()
    rank.prepare({"kernel": "all_to_all", "message_bytes": 64.0, "devices": 2}, [0, 1])
    rank.run(0.0)
    assert diary == [("new_group", [0, 1]), ("all_to_all_single", "members"), "synchronize"]


def test_numpy_has_no_collectives(tmp_path: Path) -> None:
    runner, _, _ = runners.choose("auto", "numpy", tmp_path)
    assert ranks_here(runner) == 0


def test_collective_cases_go_by_group_and_message() -> None:
    rows = collective_cases(4)
    assert {row["devices"] for row in rows} == {2, 3, 4}
    assert {row["kernel"] for row in rows} == set(COLLECTIVES) - {"send_recv"}
    assert {row["message_bytes"] for row in rows} >= {2.0**10, 2.0**24}
    assert {row["library"] for row in collective_cases(2, "hccl", quick=True)} == {"hccl"}


@pytest.fixture(scope="module")
def torch() -> Any:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    return importlib.import_module("torch")


@pytest.mark.parametrize("form", FORMS["cpu"])
def test_torch_runs_every_family_on_a_cpu(torch: Any, tmp_path: Path, form: str) -> None:
    runner = TorchCuda("cpu", torch=torch, folder=tmp_path)
    runner.trash = torch.zeros(64)
    rows = cases(runner.families, (form,), runner.tiers, room_bytes=2e8)
    rows += [{"kernel": "copy", "tier": "ssd", "bytes": 2.0**16}]
    first = {(row["kernel"], row.get("tier")): row for row in reversed(rows)}
    wanted = set(BUILDERS) - set(COLLECTIVES)
    assert {kernel for kernel, _ in first} == wanted
    for (kernel, _), row in first.items():
        if form in {"w8a16", "w4a16"} and kernel not in {"gemm", "grouped_gemm"}:
            continue
        ready = runner.prepare(row)
        assert runner.sample(ready) > 0
        if ready.close is not None:
            ready.close()


def test_packed_weights_mean_what_they_store(torch: Any) -> None:
    kernels = TorchKernels(torch, "cpu")
    for form, most in (("w8a16", 127), ("w4a16", 8)):
        full = kernels.weight({"dtype": form}, 256, 8)()
        assert tuple(full.shape) == (256, 8)
        assert full.dtype == torch.bfloat16
        assert 1 < float(full.float().abs().max()) <= most
    with pytest.raises(MoesaicError, match="4-bit weights in groups of 33"):
        kernels.weight({"dtype": "w4a16"}, 33, 8)


def test_the_grouped_product_follows_the_token_split(torch: Any) -> None:
    kernels = TorchKernels(torch, "cpu")
    row = {"kernel": "grouped_gemm", "tokens": 8, "hidden": 16, "inter": 8, "matrices": 3,
           "experts": 4, "top_k": 2, "active_experts": 2, "dtype": "fp32"}  # fmt: skip
    seen: list[int] = []
    real = torch.nn.functional.silu
    torch.nn.functional.silu = lambda x: seen.append(x.shape[0]) or real(x)
    try:
        kernels.build(row)()
    finally:
        torch.nn.functional.silu = real
    assert seen == [8, 8]
