"""The kernel rows as torch operations, shared by the CUDA, CPU and NPU runners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hwprofiles.calibration.runners.base import Row, cannot, expert_split, number, whole

_LATENT, _ROTARY, _KEY, _VALUE = 512, 64, 192, 128  # DeepSeek-V2/V3 widths (config.json)
_ALIGNED = 16  # torch._scaled_mm and torch._int_mm want multiples of 16
_GROUP = 128  # weights of a column that share a scale, as in kernels.py
PACKED_BITS = {"w8a16": 8, "w4a16": 4}
"""Formats that are unpacked to bfloat16 before each product, and their bits a weight."""
Call = Callable[[], Any]


@dataclass(frozen=True)
class TorchKernels:
    """Builds operations; `torch` is the module, passed in, never imported by accident."""

    torch: Any
    device: str
    """cuda, cpu or npu."""
    group: Any = None
    """Process group that collectives run in; none: the whole world."""

    def build(self, row: Row) -> Call:
        """The timed operation of a row.

        Raises:
            MoesaicError: `outside_evidence` for a family or format without a kernel here.
        """
        kernel = str(row.get("kernel"))
        if kernel not in BUILDERS:
            raise cannot(f"torch {self.device}", kernel)
        return BUILDERS[kernel](self, row)

    def form(self, row: Row) -> Any:  # noqa: ANN401 - a torch dtype
        """The torch dtype that a row computes in."""
        names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16",
                 "fp8": "float8_e4m3fn", "int8": "int8",
                 **dict.fromkeys(PACKED_BITS, "bfloat16")}  # fmt: skip
        name = str(row.get("dtype") or "bf16")
        if name not in names:
            raise cannot(f"torch {self.device}", f"{name}; it runs {', '.join(names)}")
        return getattr(self.torch, names[name])

    def random(self, form: Any, *shape: int) -> Any:  # noqa: ANN401 - torch objects
        """Numbers of a format; narrow ones are rounded from float16."""
        if form == self.torch.int8:
            return self.torch.randint(-127, 127, shape, dtype=form, device=self.device)
        wide = form if form.itemsize > 1 else self.torch.float16
        return self.torch.rand(shape, dtype=wide, device=self.device).to(form)

    def weight(self, row: Row, inner: int, outer: int) -> Call:
        """A matrix (inner, outer) stored as (outer, inner), and how it becomes numbers.

        Engines keep weights as `torch.nn.Linear` does, the summed side last; the other way round a
        CPU without bfloat16 units walks columns and takes up to eighty times as long. Packed
        formats keep 8 or 4 bits a weight and one scale for `_GROUP` weights that are summed.
        """
        form, bits = self.form(row), PACKED_BITS.get(str(row.get("dtype")))
        if bits is None:
            plain = self.random(form, outer, inner).t()
            return lambda: plain
        group = _GROUP if inner % _GROUP == 0 else inner
        scales = self.random(form, outer, inner // group, 1)
        shape = (outer, inner // group, group)
        if bits == 8:  # noqa: PLR2004 - bits of a byte
            codes = self.random(self.torch.int8, *shape)
            return lambda: (codes * scales).view(outer, inner).t()
        if group % 2:
            raise cannot("torch", f"4-bit weights in groups of {group}")
        shape = (outer, inner // group, group // 2)
        packed = self.torch.randint(0, 255, shape, dtype=self.torch.uint8, device=self.device)

        def unpacked() -> Any:  # noqa: ANN401 - a tensor
            codes = self.torch.cat(((packed & 15), (packed >> 4)), 2).to(form) - 8
            return (codes * scales).view(outer, inner).t()

        return unpacked


def _gemm(kernels: TorchKernels, row: Row) -> Call:
    torch, form = kernels.torch, kernels.form(row)
    m, n, k = whole(row, "m"), whole(row, "n"), whole(row, "k")
    left = kernels.random(form, m, k)
    if form.itemsize > 1:
        right, out = kernels.weight(row, k, n), kernels.random(form, m, n)
        return lambda: torch.matmul(left, right(), out=out)
    if m % _ALIGNED or n % _ALIGNED or k % _ALIGNED:
        raise cannot("torch", f"{row.get('dtype')} with sizes that are no multiple of {_ALIGNED}")
    right = kernels.random(form, n, k).t()
    if form == torch.int8:
        return lambda: torch._int_mm(left, right)  # noqa: SLF001 - torch has no public int8 GEMM
    one = torch.ones((), device=kernels.device)
    return lambda: torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16)  # noqa: SLF001 - nor a public fp8 one


def _grouped_gemm(kernels: TorchKernels, row: Row) -> Call:
    """Expert after expert; with `torch._grouped_mm` all experts of a matrix in one call."""
    torch, form = kernels.torch, kernels.form(row)
    if form.itemsize == 1:
        raise cannot("torch", f"grouped GEMM in {row.get('dtype')}")
    stored, split = expert_split(row)
    hidden, inter = whole(row, "hidden"), round(number(row, "inter") / number(row, "moe_tp", 1))
    wide, packed = inter * (whole(row, "matrices", 3) - 1), str(row.get("dtype")) in PACKED_BITS
    tokens = kernels.random(form, sum(split), hidden)

    def active(both: Any) -> Any:  # noqa: ANN401 - a tensor
        if wide == inter:
            return both
        gate, up = both[:, :inter], both[:, inter:]
        return torch.nn.functional.silu(gate) * up

    if _all_at_once(kernels, form) and not packed:
        into, out = (
            kernels.random(form, stored, *size).transpose(1, 2)
            for size in ((wide, hidden), (hidden, inter))
        )
        counts = torch.tensor(split + [0] * (stored - len(split)), device=kernels.device)
        ends = counts.cumsum(0).to(torch.int32)
        grouped = torch._grouped_mm  # noqa: SLF001 - not public yet
        return lambda: grouped(active(grouped(tokens, into, offs=ends)), out, offs=ends)
    blocks = list(torch.split(tokens, split))
    ups = [kernels.weight(row, hidden, wide) for _ in range(stored)]
    downs = [kernels.weight(row, inter, hidden) for _ in range(stored)]

    def run() -> None:
        for up, down, block in zip(ups, downs, blocks, strict=False):
            _ = active(block @ up()) @ down()

    return run


def _all_at_once(kernels: TorchKernels, form: Any) -> bool:  # noqa: ANN401 - a torch dtype
    torch = kernels.torch
    return kernels.device == "cuda" and hasattr(torch, "_grouped_mm") and form == torch.bfloat16


def _router(kernels: TorchKernels, row: Row) -> Call:
    """Scores, their softmax in float32, the top k and their sum made one."""
    torch, form = kernels.torch, kernels.form(row)
    if form.itemsize == 1:
        raise cannot("torch", f"a router in {row.get('dtype')}")
    top_k = whole(row, "top_k")
    tokens = kernels.random(form, whole(row, "tokens"), whole(row, "hidden"))
    weight = kernels.random(form, whole(row, "experts"), whole(row, "hidden")).t()

    def run() -> tuple[Any, Any]:
        scores = torch.softmax((tokens @ weight).float(), dim=-1)
        chosen, index = torch.topk(scores, top_k, dim=-1)
        return chosen / chosen.sum(-1, keepdim=True), index

    return run


def _attention(kernels: TorchKernels, row: Row, key: int, value: int) -> Call:
    """Causal attention of new tokens over old and new ones."""
    torch, form = kernels.torch, kernels.form(row)
    if row.get("window") is not None:
        raise cannot("torch", "attention with a window")
    batch, seq, past = whole(row, "batch"), whole(row, "seq"), whole(row, "past", 0)
    heads = whole(row, "heads")
    kv_heads = whole(row, "kv_heads", heads)
    query = kernels.random(form, batch, heads, seq, key)
    keys = kernels.random(form, batch, kv_heads, past + seq, key)
    values = kernels.random(form, batch, kv_heads, past + seq, value)
    attend = torch.nn.functional.scaled_dot_product_attention
    shared = {"enable_gqa": True} if kv_heads != heads else {}
    if past == 0:
        return lambda: attend(query, keys, values, is_causal=True, **shared)
    mask = torch.nn.attention.bias.causal_lower_right(seq, past + seq)
    return lambda: attend(query, keys, values, attn_mask=mask, **shared)


def _attention_prefill(kernels: TorchKernels, row: Row) -> Call:
    width = whole(row, "head_dim")
    return _attention(kernels, row, width, whole(row, "v_head_dim", width))


def _mla_prefill(kernels: TorchKernels, row: Row) -> Call:
    return _attention(kernels, {**row, "kv_heads": None}, _KEY, _VALUE)


def _attention_decode(kernels: TorchKernels, row: Row) -> Call:
    torch, form = kernels.torch, kernels.form(row)
    batch, seq, heads = whole(row, "batch"), whole(row, "seq"), whole(row, "heads")
    kv_heads, width = whole(row, "kv_heads"), whole(row, "head_dim")
    query = kernels.random(form, batch, heads, whole(row, "queries", 1), width)
    keys = kernels.random(form, batch, kv_heads, seq, width)
    values = kernels.random(form, batch, kv_heads, seq, width)
    attend = torch.nn.functional.scaled_dot_product_attention
    shared = {"enable_gqa": True} if kv_heads != heads else {}
    return lambda: attend(query, keys, values, **shared)


def _mla_decode(kernels: TorchKernels, row: Row) -> Call:
    """Absorbed form: all heads read one latent and rotary key (DeepSeek-V2, section 2.1.3)."""
    form = kernels.form(row)
    batch, seq = whole(row, "batch"), whole(row, "seq")
    rank, rotary = whole(row, "kv_rank", _LATENT), whole(row, "rope_dim", _ROTARY)
    query = kernels.random(
        form, batch, whole(row, "heads") * whole(row, "queries", 1), rank + rotary
    )
    cache = kernels.random(form, batch, seq, rank + rotary)
    return lambda: ((query @ cache.transpose(1, 2)).softmax(-1)) @ cache[..., :rank]


def _elementwise(kernels: TorchKernels, row: Row) -> Call:
    torch = kernels.torch
    given = kernels.random(torch.float32, max(1, whole(row, "bytes") // 8))
    out = torch.empty_like(given)
    return lambda: torch.mul(given, 1.5, out=out)


def _copy(kernels: TorchKernels, row: Row) -> Call:
    """Inside the device's memory, or from pinned host memory (bytes then cross once)."""
    torch, tier, size = kernels.torch, str(row.get("tier") or ""), whole(row, "bytes")
    from_host = tier == "dram" and kernels.device != "cpu"
    if tier == "ssd":
        raise cannot("torch", "disk reads; the numpy runner does")
    count = max(1, size // (4 if from_host else 8))
    out = torch.empty(count, dtype=torch.float32, device=kernels.device)
    given = torch.rand(count, dtype=torch.float32)
    given = given.pin_memory() if from_host else given.to(kernels.device)
    return lambda: out.copy_(given, non_blocking=True)


def _collective(name: str) -> Callable[[TorchKernels, Row], Call]:
    """A collective over the process group that `torchrun` has set up."""

    def build(kernels: TorchKernels, row: Row) -> Call:
        torch, group = kernels.torch, kernels.torch.distributed
        ranks = whole(row, "devices")
        if not (group.is_available() and group.is_initialized()):
            raise cannot("torch", f"{name} in one process; start it under torchrun")
        size = group.get_world_size(kernels.group)
        if size != ranks:
            raise cannot("torch", f"{name} over {ranks} ranks in a group of {size}")
        count = max(ranks, whole(row, "message_bytes") // 2 // ranks * ranks)
        full = torch.zeros(count, dtype=torch.float16, device=kernels.device)
        part = torch.zeros(count // ranks, dtype=torch.float16, device=kernels.device)
        other = torch.zeros_like(full)
        # torch 2.14 renames both and warns of the older names at each call
        gather = getattr(group, "all_gather_single", None) or group.all_gather_into_tensor
        scatter = getattr(group, "reduce_scatter_single", None) or group.reduce_scatter_tensor
        calls: dict[str, Call] = {
            "all_reduce": lambda: group.all_reduce(full, group=kernels.group),
            "all_gather": lambda: gather(full, part, group=kernels.group),
            "reduce_scatter": lambda: scatter(part, full, group=kernels.group),
            "all_to_all": lambda: group.all_to_all_single(other, full, group=kernels.group),
        }
        return calls[name]

    return build


BUILDERS: dict[str, Callable[[TorchKernels, Row], Call]] = {
    "gemm": _gemm,
    "grouped_gemm": _grouped_gemm,
    "router": _router,
    "attention_prefill": _attention_prefill,
    "attention_decode": _attention_decode,
    "mla_prefill": _mla_prefill,
    "mla_decode": _mla_decode,
    "elementwise": _elementwise,
    "copy": _copy,
    **{name: _collective(name)
       for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")},
}  # fmt: skip
"""Kernel family: what builds it."""
