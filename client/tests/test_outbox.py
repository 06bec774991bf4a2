"""The writer's core without any I/O: numbering, gathering, acks, and the table of the link."""

import itertools

import pytest

import tickflight
from tickflight import outbox as module
from tickflight.link import TRANSITIONS, Event, Link, Phase
from tickflight.outbox import GATHER_ROWS, LINGER_SECONDS, Ack, Batch, Outbox
from tickflight.records import Title


def outbox(**options: int) -> Outbox:
    return Outbox(Title("feed-1", "ticks"), memory_limit=1_000, **options)


def put(box: Outbox, rows: int = 1, *, kind: str = "a", now: float = 0.0, size: int = 10) -> None:
    box.put(f"{rows} rows", rows=rows, size=size, kind=kind, now=now)


def take(box: Outbox, now: float = 0.0) -> Batch:
    batch = box.next_batch(now)
    assert batch is not None
    return batch


class TestGathering:
    def test_rows_go_at_once_when_nothing_is_in_flight(self) -> None:
        box = outbox()
        put(box)
        assert take(box).seq == 1
        put(box)
        assert box.next_batch(0.0) is None
        box.acked(Ack(1))
        assert take(box).seq == 2

    def test_rows_wait_for_company_while_others_are_in_flight_but_not_long(self) -> None:
        box = outbox()
        put(box)
        take(box)
        put(box, 2, now=1.0)
        put(box, 3, now=1.005)
        assert box.next_batch(1.0) is None
        assert box.wait(1.0) == pytest.approx(LINGER_SECONDS)
        batch = take(box, 1.0 + LINGER_SECONDS)
        assert (batch.seq, batch.rows, batch.parts) == (2, 5, ("2 rows", "3 rows"))

    def test_enough_rows_do_not_wait(self) -> None:
        box = outbox()
        put(box)
        take(box)
        put(box, GATHER_ROWS - 1)
        assert box.next_batch(0.0) is None
        put(box, 1)
        assert take(box).rows == GATHER_ROWS

    def test_a_batch_holds_one_kind_and_no_more_rows_than_enough(self) -> None:
        box = outbox()
        box.hurry = True
        for kind, rows in (("a", 1), ("b", 2), ("b", GATHER_ROWS - 2), ("b", 1), ("b", 9_999)):
            put(box, rows, kind=kind)
        assert [take(box).rows for _ in range(4)] == [1, GATHER_ROWS, 1, 9_999]

    def test_the_window_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_IN_FLIGHT_BATCHES", 2)
        box = outbox()
        box.hurry = True
        for _ in range(3):
            put(box, GATHER_ROWS)
        assert (take(box).seq, take(box).seq) == (1, 2)
        assert box.next_batch(9.0) is None
        assert box.wait(9.0) is None
        box.acked(Ack(1))
        assert take(box).seq == 3


class TestAcks:
    def test_an_ack_covers_all_before_it(self) -> None:
        box = outbox()
        box.hurry = True
        for _ in range(3):
            put(box, GATHER_ROWS)
            take(box)
        box.acked(Ack(3, quarantined=2, duplicates=1))
        assert box.settled
        assert (box.durable, box.rows_durable, box.memory_bytes) == (3, 3 * GATHER_ROWS, 0)
        assert (box.rows_quarantined, box.rows_duplicate) == (2, 1)
        box.acked(Ack(2))
        assert box.durable == 3

    def test_the_same_batches_go_again_after_a_rewind(self) -> None:
        box = outbox()
        box.hurry = True
        for _ in range(3):
            put(box, GATHER_ROWS)
        first = [take(box) for _ in range(3)]
        box.acked(Ack(1))
        box.rewind()
        assert [take(box), take(box)] == first[1:]

    def test_an_ack_for_what_was_resent_moves_the_stream_past_it(self) -> None:
        box = outbox()
        box.hurry = True
        for _ in range(3):
            put(box, GATHER_ROWS)
            take(box)
        box.rewind()
        take(box)
        box.acked(Ack(2))
        assert take(box).seq == 3
        assert box.in_flight == 1

    def test_an_ack_for_what_was_never_sent_is_an_error(self) -> None:
        box = outbox(first_seq=5)
        put(box)
        take(box)
        with pytest.raises(tickflight.SequenceError, match="first_seq=7"):
            box.acked(Ack(6))

    @pytest.mark.parametrize(
        ("expected", "can"), [(None, False), (1, False), (2, True), (3, True), (4, False)]
    )
    def test_only_what_is_kept_can_be_sent_again(self, expected: int | None, *, can: bool) -> None:
        box = outbox()
        box.hurry = True
        for _ in range(2):
            put(box, GATHER_ROWS)
            take(box)
        box.acked(Ack(1))
        assert box.can_resume_at(expected) is can

    def test_its_repr_shows_where_everything_is(self) -> None:
        box = outbox()
        put(box)
        take(box)
        put(box, 3)
        assert repr(box) == (
            "<Outbox feed-1: 3 rows gathered, 1 batches unacked, 1 in flight, durable 0>"
        )


class TestLink:
    def link(self, jitter: float = 0.0) -> Link:
        return Link(lambda: jitter)

    def test_every_pair_outside_the_table_is_a_bug(self) -> None:
        for phase, event in itertools.product(Phase, Event):
            link = self.link()
            link.phase = phase
            if event in TRANSITIONS[phase]:
                link.on(event)
                assert link.phase is TRANSITIONS[phase][event]
            else:
                with pytest.raises(RuntimeError, match="can't happen"):
                    link.on(event)

    def test_every_phase_can_be_reached_and_all_but_the_last_left(self) -> None:
        reached = {Phase.IDLE}
        for _ in Phase:
            reached |= {after for phase in reached for after in TRANSITIONS[phase].values()}
        assert reached == set(Phase)
        assert [phase for phase in Phase if not TRANSITIONS[phase]] == [Phase.CLOSED]

    @pytest.mark.parametrize("jitter", [0.0, 0.999])
    def test_delays_double_up_to_a_limit_and_an_ack_ends_them(self, jitter: float) -> None:
        link = self.link(jitter)
        factor = 0.5 + jitter / 2
        delays = []
        for _ in range(10):
            link.dial()
            link.lost(100.0)
            delays.append(link.wait(100.0))
        wanted = [min(5.0, 0.1 * 2**n) * factor for n in range(10)]
        assert delays == pytest.approx(wanted)
        assert not link.trusted
        link.dial()
        link.proved()
        assert link.trusted
        link.lost(0.0)
        assert link.wait(0.0) == pytest.approx(0.1 * factor)
        assert link.losses == 11
        assert repr(link) == "<Link broken, generation 11, 11 lost>"
