"""Where the made-up measurements of these tests ran."""

from hwprofiles.calibration.environment import Environment

PLACE = Environment(
    processor="Test CPU",
    architecture="x86_64",
    cores_count=2,
    memory_bytes=2.0**34,
    last_level_cache_bytes=2.0**25,
    operating_system="Linux",
    python="3.11",
)
