"""Reads what a compiled program sends between devices from its text (XLA's HLO)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")
_DEVICES = re.compile(r"\bnum_partitions=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: one of KINDS.
        bytes: of its whole result on a device; for a reduce-scatter, of what it reduces.
        times: how often it runs, once in each round of the loops around it; None: a loop's length
            is not known.
        in_loop: whether a loop is around it.
        group: how many devices take part together; 2 for a permutation, one of which sends and one
            receives.
    """

    kind: str
    bytes: int
    times: int | None
    in_loop: bool
    group: int

    @property
    def received(self) -> float:
        """Bytes that a device receives each time, by the algorithms that move least (a ring)."""
        if self.kind == "collective-permute":
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.group - 1) / self.group


def collectives_of(text: str) -> list[Collective]:
    """Returns the collectives of a program compiled for a CPU (elsewhere they start and end apart).

    Args:
        text: `compiled.as_text()`.
    """
    devices = int(partitions[1]) if (partitions := _DEVICES.search(text)) else 1
    collectives: dict[str, list[tuple[str, int, int]]] = {}
    calls: dict[str, list[tuple[str, int | None, bool]]] = {}
    name = entry = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            name = opened[2]
            entry = name if opened[1] else entry
            collectives[name], calls[name] = [], []
        elif instruction := _INSTRUCTION.match(line):
            shape, operation = instruction.groups()
            if operation in KINDS:
                group = _group(line, operation, devices)
                whole = _bytes(shape) * (group if operation == "reduce-scatter" else 1)
                collectives[name].append((operation, whole, group))
            loop = operation == "while"
            trips = int(count[1]) if (count := _TRIPS.search(line)) else None
            called = _CALLED.findall(line) + [
                branch.strip(" %")
                for names in _BRANCHES.findall(line)
                for branch in names.split(",")
            ]
            calls[name] += [(other, trips if loop else 1, loop) for other in called]

    def walk(name: str, times: int | None, in_loop: bool) -> Iterator[Collective]:
        for kind, size, group in collectives[name]:
            yield Collective(kind, size, times, in_loop, group)
        for other, trips, loop in calls[name]:
            yield from walk(
                other, None if times is None or trips is None else times * trips, in_loop or loop
            )

    return list(walk(entry, 1, False))


def _group(line: str, operation: str, devices: int) -> int:
    if operation == "collective-permute":
        return 2
    groups = _GROUPS.search(line)
    if not groups:  # replica_groups={}: everybody
        return devices
    return len(groups[1].split(",")) if groups[1] else int(groups[2])


def _bytes(shape: str) -> int:
    """Returns the bytes of a shape, such as "f32[2,3]{1,0}" or "(f32[2], u8[4])"."""
    total = 0
    for kind, bits, sizes in _ARRAY.findall(shape):
        size = math.prod(int(size) for size in sizes.split(",") if size)
        total += size * int(8 if kind == "pred" else bits or 0) // 8
    return total
