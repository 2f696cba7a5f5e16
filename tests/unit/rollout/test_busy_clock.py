from megatron_empg.rollout.busy_clock import BusyClock


def test_overlapping_work_counts_once_and_pauses_do_not() -> None:
    now = [0.0]
    clock = BusyClock(lambda: now[0])
    with clock.work():
        now[0] = 2.0
        with clock.work():
            now[0] = 3.0
        now[0] = 5.0
    assert clock.seconds == 5.0
    now[0] = 9.0
    assert clock.seconds == 5.0, "nothing was under way"
    with clock.work():
        now[0] = 10.0
        assert clock.seconds == 6.0, "work that goes on counts"


def test_work_that_fails_ends_too() -> None:
    now = [0.0]
    clock = BusyClock(lambda: now[0])
    try:
        with clock.work():
            now[0] = 1.0
            raise OSError
    except OSError:
        now[0] = 7.0
    assert clock.seconds == 1.0
