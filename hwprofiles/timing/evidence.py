"""Say what a device's times come from: its profiles with rows and error, its curves, conflicts."""

from __future__ import annotations

import json
import statistics
from typing import Any

from hwprofiles.device import Device
from hwprofiles.efficiency import load_curves
from hwprofiles.library import names
from hwprofiles.timing.profile import FOLDER


def evidence_of(device: Device) -> list[dict[str, Any]]:
    """One row a profile, then the curves used where no profile answers.

    Each names what it is, when and from where; profiles add rows, kernel families and the median
    over tables of the median error on what was held out; `conflicts`: sources that disagree.
    """
    found = []
    for path in sorted(FOLDER.glob(f"{device.name}.*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        errors = [t.get("error_shapes") or t.get("error_sizes", {}) for t in card["tables"]]
        known = [error["median"] for error in errors if "median" in error]
        found.append({
            "what": f"tables of {card['backend']}", "rows": card["rows"], "date": card["date"],
            "families": sorted({table["kernel"] for table in card["tables"]}),
            "median_error_ratio": statistics.median(known) if known else None,
            "source": card["source"], "conflicts": card.get("conflicts", ""),
        })  # fmt: skip
    if device.curves not in names("curves"):  # a file of one's own may name curves elsewhere
        return found
    curves = load_curves(device.curves)
    found.append({
        "what": f"curves {curves.name}", "rows": None, "date": str(curves.date),
        "families": sorted(curves.families), "median_error_ratio": None,
        "source": curves.source, "conflicts": "",
    })  # fmt: skip
    return found
