"""Cache groups on a fake device, which store every entry as text."""

from dataclasses import dataclass
from hashlib import blake2b

from jaxserve.api.caches import CacheGroup, PagedGroup, StateGroup, WindowGroup
from jaxserve.api.plan import RowPlan, SlotAssignment


def chain(parent: bytes, token_id: int) -> bytes:
    """Return the KV entry of `token_id` after the entry `parent`."""
    return blake2b(parent + token_id.to_bytes(8, "big"), digest_size=8).digest()


@dataclass
class Slot:
    """A slot on the fake device, with the tokens of its sequence that exist there."""

    assignment: SlotAssignment
    tokens: list[int]
    table: list[int]
    num_written: int = 0  # entries up to here were computed, or found in shared pages
    has_row: bool = False
    is_deferred: bool = False


class FakeGroup:
    """A cache group on the fake device: entries by page and offset."""

    overwrites = False  # whether a row may write where it reads

    def __init__(self, group: CacheGroup, entries: dict[tuple[int, int], bytes]) -> None:
        self.group = group
        self.entries = entries

    def columns(self, slot: Slot) -> list[int]:
        """The group's part of a slot's row of the page table."""
        first = self.group.first_column
        return slot.table[first : first + self.group.num_columns]

    def place(self, slot: Slot, position: int, page_size: int) -> tuple[int, int]:
        """Where the entry of a token is that lies behind the last one."""
        return self.columns(slot)[position // page_size], position % page_size

    def seen(self, start: int) -> range:
        """The positions whose entries a row that begins at `start` reads."""
        return range(start)

    def read(self, slot: Slot, row: RowPlan, page_size: int) -> list[tuple[int, int]]:
        """Where a row reads the entries of `seen`."""
        return [self.place(slot, position, page_size) for position in self.seen(row.start)]

    def write(self, slot: Slot, row: RowPlan, page_size: int) -> list[tuple[int, int]]:
        """Where a row writes the entries of its tokens."""
        positions = range(row.start, row.start + row.num_tokens)
        return [self.place(slot, position, page_size) for position in positions]


class FakeWindow(FakeGroup):
    """A group of the last tokens: its first column says at which page the others begin."""

    group: WindowGroup

    def place(self, slot: Slot, position: int, page_size: int) -> tuple[int, int]:
        """See FakeGroup."""
        first, *pages = self.columns(slot)
        index = position // page_size - first
        assert 0 <= index < len(pages), f"position {position} is outside of what is kept"
        return pages[index], position % page_size

    def seen(self, start: int) -> range:
        """See FakeGroup."""
        return range(max(0, start - self.group.window + 1), start)


class FakeState(FakeGroup):
    """A group of states: the entry of the last token alone, in a page of its own."""

    overwrites = True

    def seen(self, start: int) -> range:
        """See FakeGroup."""
        return range(max(0, start - 1), start)

    def read(self, slot: Slot, row: RowPlan, page_size: int) -> list[tuple[int, int]]:
        """See FakeGroup."""
        return [(self.columns(slot)[0], 0)] if row.start else []

    def write(self, slot: Slot, row: RowPlan, page_size: int) -> list[tuple[int, int]]:
        """See FakeGroup."""
        return [(self.columns(slot)[1], 0)] * row.num_tokens


FAKE_GROUPS: dict[type[CacheGroup], type[FakeGroup]] = {
    PagedGroup: FakeGroup,
    WindowGroup: FakeWindow,
    StateGroup: FakeState,
}
