"""CDAC and DCCA as stages that a rank really runs, and as the kernel rows that price them.

CDAC: communicate, descend, ascend, communicate. DCCA: descend, communicate, communicate, ascend, so
narrowed tokens travel (BigMac, arXiv:2502.16927). Experts are as wide as a DCCA token, so that both
orders store and compute the same apart from DCCA's two shared projections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hwprofiles.calibration.runners.base import whole
from hwprofiles.calibration.runners.torch_kernels import Call, TorchKernels

NUMBER_BYTES = 4  # fp32: what CPUs compute in
ORDERS = ("cdac", "dcca")
Row = Mapping[str, object]


def message_bytes(row: Row, order: str) -> float:
    """Bytes of one rank's token-expert pairs."""
    return float(
        whole(row, "tokens") * whole(row, "top_k") * token_width(row, order) * NUMBER_BYTES
    )


def token_width(row: Row, order: str) -> int:
    """Numbers of a token as it travels: hidden-wide under CDAC, narrowed under DCCA."""
    return whole(row, "hidden" if order == "cdac" else "inter")


def order_rows(row: Row, order: str) -> list[dict[str, Any]]:
    """The kernel rows of one layer in an order: exchanges, products, and the copies around them.

    Args:
        row: tokens a rank, hidden, inter (width of an expert and of a narrowed token), top_k,
            devices, nodes.
        order: one of `ORDERS`.
    """
    tokens, hidden, narrow = (whole(row, name) for name in ("tokens", "hidden", "inter"))
    pairs, width = tokens * whole(row, "top_k"), token_width(row, order)
    inner = narrow if order == "cdac" else hidden
    exchange = {"kernel": "all_to_all", "library": "gloo", "devices": whole(row, "devices"),
                "nodes": whole(row, "nodes"), "message_bytes": message_bytes(row, order),
                "dtype": "fp32"}  # fmt: skip
    copies = [2 * pairs * width, (pairs + tokens) * width]
    experts = [_product(pairs, inner, width), _product(pairs, width, inner)]
    shared = [_product(tokens, narrow, hidden), _product(tokens, hidden, narrow)]
    return [
        exchange, exchange, *experts, *(shared if order == "dcca" else []),
        *({"kernel": "elementwise", "bytes": float(size * NUMBER_BYTES)} for size in copies),
    ]  # fmt: skip


def _product(m: int, n: int, k: int) -> dict[str, Any]:
    return {"kernel": "gemm", "m": m, "n": n, "k": k, "dtype": "fp32"}


def order_stages(kernels: TorchKernels, row: Row) -> Call:
    """One layer's stages on torch tensors, in the order that the row names."""
    torch = kernels.torch
    tokens, hidden, narrow = (whole(row, name) for name in ("tokens", "hidden", "inter"))
    top_k, order = whole(row, "top_k"), str(row["order"])
    width, inner = token_width(row, order), narrow if order == "cdac" else hidden
    given = kernels.random(torch.float32, tokens, hidden)
    copies = torch.arange(tokens * top_k) % tokens
    sent = torch.empty(tokens * top_k, width)
    into, out = (kernels.random(torch.float32, *size) for size in ((width, inner), (inner, width)))
    descend, ascend = (
        kernels.random(torch.float32, *size) for size in ((hidden, narrow), (narrow, hidden))
    )
    travel = _exchanged(kernels)

    def experts(wide: Any) -> Any:  # noqa: ANN401 - a tensor
        torch.index_select(wide, 0, copies, out=sent)
        return travel((travel(sent) @ into) @ out).view(top_k, tokens, width).sum(0)

    if order == "cdac":
        return lambda: experts(given)
    return lambda: experts(given @ descend) @ ascend


def _exchanged(kernels: TorchKernels) -> Callable[[Any], Any]:
    def travel(sent: Any) -> Any:  # noqa: ANN401 - a tensor
        received = kernels.torch.empty_like(sent)
        all_to_all(kernels, received, sent)
        return received

    return travel


def all_to_all(kernels: TorchKernels, received: Any, sent: Any) -> None:  # noqa: ANN401 - tensors
    """Exchange equal parts with all ranks of the group; over gloo, receives are posted first.

    Gloo's own all-to-all posts its sends first. A rank that comes late then sends its data before
    it says that it is ready, and both directions of the link run one after the other.
    Accelerators run their library's own: there a receive is a kernel that holds its stream, and two
    ranks that both receive first would wait for each other.
    """
    group = kernels.torch.distributed
    if kernels.device != "cpu":
        group.all_to_all_single(received, sent, group=kernels.group)
        return
    members = group.get_process_group_ranks(kernels.group)
    own = members.index(group.get_rank())
    into, out = received.chunk(len(members)), sent.chunk(len(members))
    steps = [(own + i) % len(members) for i in range(1, len(members))]
    work = [group.irecv(into[i], members[i], kernels.group) for i in steps]
    work += [group.isend(out[i], members[i], kernels.group) for i in steps]
    into[own].copy_(out[own])
    for item in work:
        item.wait()


def exchange_stage(kernels: TorchKernels, row: Row) -> Call:
    """One all-to-all of a buffer."""
    ranks = kernels.torch.distributed.get_world_size(kernels.group)
    count = max(1, whole(row, "message_bytes") // NUMBER_BYTES // ranks) * ranks
    sent = kernels.random(kernels.torch.float32, count)
    received = kernels.torch.empty_like(sent)
    return lambda: all_to_all(kernels, received, sent)


def stages(kernels: TorchKernels, row: Row) -> Call:
    """What a rank runs for a row: a layer in an order, an exchange, or a plain kernel."""
    if "order" in row:
        return order_stages(kernels, row)
    if row.get("kernel") == "all_to_all":
        return exchange_stage(kernels, row)
    return kernels.build(row)
