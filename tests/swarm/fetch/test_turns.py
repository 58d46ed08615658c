"""In which order a node asks for windows: few in order, the others in an order that no other node has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.fetch.turns import IN_ORDER, in_turn, own_order


@given(me=st.text(max_size=8), windows=st.integers(1, 200), data=st.data())
def test_every_missing_window_has_one_turn(me: str, windows: int, data: st.DataObject) -> None:
    """The first few as they stand in the blob, the rest as they stand in the node's own order."""
    missing = sorted(data.draw(st.sets(st.integers(0, windows - 1))))
    order = own_order(me, windows)
    turns = list(in_turn(order, missing))
    assert [window for rank, window in turns if rank == 0] == missing[:IN_ORDER]
    rest = [window for rank, window in turns if rank == 1]
    assert sorted(rest) == missing[IN_ORDER:]
    assert rest == sorted(rest, key=order.index)


def test_two_nodes_ask_in_different_orders() -> None:
    """Otherwise nobody would have what another lacks."""
    one, other = own_order("10.0.0.1:6881", 64), own_order("10.0.0.2:6881", 64)
    assert one != other
    assert sorted(one) == sorted(other) == list(range(64))
    assert one == own_order("10.0.0.1:6881", 64), "after a restart the order is the same"
