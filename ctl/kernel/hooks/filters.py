"""Our tc programs as a table for reconciling (ctl.core.ports.Table): links at tcx, or filters of clsact.

A link wherever the kernel has tcx (ctl.kernel.hooks.tcx has why). A filter where it has not, and
where someone else's filters are: these have to see what our program would redirect, and tcx
runs before them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final

from ctl.core.errors import ForeignProgram, KernelError
from ctl.core.host import OWNER, Filter, FilterKey
from ctl.core.plan import Delta
from ctl.kernel.bpf.loader import Program
from ctl.kernel.hooks import tcx
from ctl.kernel.netlink import tc
from ctl.kernel.netlink.socket import Refused, Rtnl, suppress_missing

PRIORITY: Final = 49000
"""Our filters' priority, behind all that are made by hand: these see every packet before we do."""
HANDLE: Final = 1
_PLACE: Final = (PRIORITY, HANDLE)

_MISPLACED: Final = Filter("", 0)
"""What is read for a place that has a program of ours in the wrong way: no value that is ever wanted."""


class Filters:
    """Our tc programs, by place. What is attached is remembered; `forget` reads anew.

    `root`: where pins are.
    """

    def __init__(self, rtnl: Rtnl, root: Path) -> None:
        self._rtnl = rtnl
        self._links = tcx.Links(root)
        self.has_tcx: Final = tcx.supported()
        """Whether a program can be put before those of others."""
        self._known: dict[int, dict[FilterKey, Filter]] = {}
        """What of ours is on each interface that was looked at."""
        self._stale: set[int] = set()
        """Interfaces of which that may not be true any more."""
        self._taken: dict[int, str] = {}
        """Why our programs must not go to an interface; empty if they may."""
        self._others: dict[FilterKey, list[int]] = {}
        """Ids of others' programs at tcx, of each place that was looked at."""
        self._filtered: set[int] = set()
        """Interfaces that have, or had, a program of ours by a filter."""
        self.programs: Mapping[str, Program] = {}
        """What there is to attach, by name."""

    def close(self) -> None:
        """Let go of the links, which stay as long as they are pinned."""
        self._links.close()

    def pin(self) -> bool:
        """Pin the links whose pins are gone; True if there were any. KernelError."""
        return self._links.pin()

    def detached(self, interfaces: Collection[int]) -> bool:
        """Whether someone took a link of ours off one of these interfaces. 5 us for each link.

        Or others' programs at tcx have come or gone, on any interface that we look after: 8 us a place.
        """
        return self._links.detached(interfaces) or any(
            self._others_at(key) != seen for key, seen in self._others.items()
        )

    def forget(self, ifindex: int | None = None) -> None:
        """Someone changed the filters of an interface (None: of any)."""
        # The interface stays known: a program on it that is not wanted has to go.
        touched = {*self._known, *self._taken} if ifindex is None else {ifindex}
        self._stale |= touched & self._known.keys()
        for each in touched:
            self._taken.pop(each, None)

    def read(self) -> Mapping[FilterKey, Filter]:
        """What we remember to be attached."""
        return {key: value for found in self._known.values() for key, value in found.items()}

    def read_on(self, interfaces: Iterable[int]) -> Mapping[FilterKey, Filter]:
        """Programs of ours on these interfaces, and on others that we remember. KernelError."""
        if due := (set(interfaces) - self._known.keys()) | self._stale:
            linked = self._links.read()
            for ifindex in due:
                places = FilterKey(ifindex, True), FilterKey(ifindex, False)
                found = {key: self._look(key, linked.get(key, 0)) for key in places}
                self._known[ifindex] = {key: value for key, value in found.items() if value}
        self._stale.clear()
        return self.read()

    def gone(self, present: Iterable[int]) -> None:
        """Interfaces that no longer exist took their programs with them."""
        for ifindex in (self._known.keys() | self._taken.keys()) - set(present):
            for key in self._known.pop(ifindex, {}):
                self._links.forget(key)
            self._taken.pop(ifindex, None)
            self._stale.discard(ifindex)
            for ingress in (True, False):
                self._others.pop(FilterKey(ifindex, ingress), None)

    def taken(self, ifindex: int) -> str:
        """Why our programs must not go to a port, in words; empty if they may. Remembered until `forget`."""
        if ifindex not in self._taken:
            self._taken[ifindex] = self.foreign(ifindex, True) or self._passed_by(ifindex)
        return self._taken[ifindex]

    def _passed_by(self, ifindex: int) -> str:
        """What of someone else's hangs at a port's egress, in words: redirect_peer delivers behind it."""
        key = FilterKey(ifindex, False)
        found = [f"{_what(each)} of someone else" for each in attached(self._rtnl, key) if not is_ours(each)]
        found += [f"someone else's program {ident} at tcx egress" for ident in self._look_at_tcx(key)]
        return f"{found[0]} would not see what our program delivers" if found else ""

    def _look_at_tcx(self, key: FilterKey) -> list[int]:
        """Ids of others' programs at tcx, which are remembered. KernelError."""
        if self.has_tcx:
            self._others[key] = self._others_at(key)
        return self._others.get(key, [])

    def _others_at(self, key: FilterKey) -> list[int]:
        ours = self._links.program(key)
        return [ident for ident in tcx.programs(key) if ident != ours]

    def foreign(self, ifindex: int, ingress: bool) -> str:
        """Why our program must not go there: a filter of someone else's, in words; or ""."""
        for each in attached(self._rtnl, FilterKey(ifindex, ingress)):
            if is_ours(each):
                continue
            if each.priority == PRIORITY:
                return f"{_what(each)} of someone else has our priority {each.priority}"
            if each.priority > PRIORITY:
                return f"{_what(each)} at priority {each.priority} would not see what our program redirects"
        return ""

    def others(self, key: FilterKey) -> list[str]:
        """What of others runs in a place, in words, in that order."""
        ours = self._links.read().get(key)
        linked = [each for each in tcx.programs(key) if each != ours]
        there = [each for each in attached(self._rtnl, key) if not is_ours(each)]
        return [f"program {tcx.name_of(each) or '?'} (id {each}) at tcx" for each in linked] + [
            f"{_what(each)} at priority {each.priority}" for each in there
        ]

    def apply(self, delta: Delta[FilterKey, Filter]) -> None:
        """Try every operation, removals first. KernelError: one line for those that failed."""
        operations: list[Callable[[], None]] = [partial(self._detach, key) for key in delta.removals]
        operations += [partial(self._attach, key, value) for key, value in delta.puts]
        failed, reason = 0, ""
        for turn, operation in enumerate(operations):
            try:
                with _suppress_missing() if turn < len(delta.removals) else nullcontext():
                    operation()
            except KernelError as error:
                failed, reason = failed + 1, str(error)
        if failed:
            raise KernelError(f"tc programs: {failed} of them not as wanted: {reason}")

    def _attach(self, key: FilterKey, new: Filter) -> None:
        try:
            self._put(key, self.programs[new.program], new.first)
        except Refused as error:
            if error.code != errno.ENODEV:  # a container that has just ended
                raise
        else:
            self._known.setdefault(key.ifindex, {})[key] = new
            if key not in self._others:
                self._look_at_tcx(key)

    def _put(self, key: FilterKey, program: Program, first: bool) -> None:
        """The new way first, if it is another one than before: no packet goes without."""
        there = attached(self._rtnl, key)
        if self._links_at(there) or (first and self.has_tcx):
            self._links.put(key, program.fd, first=first)
            if any(map(is_ours, there)):
                self._remove_filter(key)
            return
        if why := self.foreign(key.ifindex, key.ingress):
            raise ForeignProgram(f"interface {key.ifindex}: {why}")
        self._put_filter(key, program)
        self._links.remove(key)

    def _detach(self, key: FilterKey) -> None:
        self._known.get(key.ifindex, {}).pop(key, None)
        self._links.remove(key)
        self._remove_filter(key)

    def _put_filter(self, key: FilterKey, program: Program) -> None:
        try:
            tc.add_clsact(self._rtnl, key.ifindex)
        except Refused as error:
            if error.code != errno.EEXIST:  # someone's, or ours
                raise
        name = f"{OWNER}:{program.name}:{program.id}"
        tc.put(self._rtnl, key.ifindex, key.ingress, _PLACE, program.fd, name)

    def _remove_filter(self, key: FilterKey) -> None:
        with _suppress_missing():
            tc.remove(self._rtnl, key.ifindex, key.ingress, _PLACE)

    def remove_clsact(self) -> None:
        """Take the qdisc that filters of ours hung on away where nothing hangs on it any more.

        For teardown only: deactivating an interface's qdiscs drops packets under load.
        """
        for ifindex in self._filtered:
            with _suppress_missing():
                if not any(tc.listing(self._rtnl, ifindex, ingress) for ingress in (True, False)):
                    tc.remove_clsact(self._rtnl, ifindex)

    def _look(self, key: FilterKey, linked: int) -> Filter | None:
        """What of ours is in a place, where the program with the id `linked` hangs by a link."""
        there = attached(self._rtnl, key)
        filtered = [each for each in there if is_ours(each)]
        if filtered:
            self._filtered.add(key.ifindex)
        elif not linked:
            return None
        self._look_at_tcx(key)
        order = tcx.programs(key) if linked and not filtered else []
        if self._links_at(there) and order[-1:] == [linked]:
            return Filter(self._name(linked), linked)
        if order[:1] == [linked]:
            return Filter(self._name(linked), linked, first=True)
        return _MISPLACED if linked or self._links_at(there) else _parse(filtered[0])

    def _links_at(self, there: Iterable[tc.Attached]) -> bool:
        """Whether a place with these filters is one for a link."""
        return self.has_tcx and all(map(is_ours, there))

    def _name(self, ident: int) -> str:
        return next((each.name for each in self.programs.values() if each.id == ident), "")


def attached(rtnl: Rtnl, key: FilterKey) -> list[tc.Attached]:
    """All filters in a place, in the order in which they run. Empty if the interface is gone."""
    found: list[tc.Attached] = []
    with suppress_missing():
        found.extend(tc.listing(rtnl, key.ifindex, key.ingress))
    return found


def _suppress_missing() -> AbstractContextManager[None]:
    """For removals: where there is no clsact, a filter's place is one that cannot be (EINVAL)."""
    return suppress_missing(also=errno.EINVAL)


def _parse(each: tc.Attached) -> Filter:
    """By a filter's name, which is what older versions go by."""
    _, program, ident = (*each.name.split(":"), "", "")[:3]
    return Filter(program, int(ident) if ident.isdigit() else 0)


def _what(each: tc.Attached) -> str:
    """A filter in words."""
    return f"{each.kind} filter {each.name}".strip()


def is_ours(each: tc.Attached) -> bool:
    """By its name."""
    return each.name.startswith(f"{OWNER}:")
