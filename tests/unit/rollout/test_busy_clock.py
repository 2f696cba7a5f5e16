from megatron_empg.rollout.busy_clock import BusyClock


def test_overlapping_work_counts_once_and_pauses_do_not() -> None:
    now = [0.0]
    clock = BusyClock(clock=lambda: now[0])
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
    clock = BusyClock(clock=lambda: now[0])
    try:
        with clock.work():
            now[0] = 1.0
            raise OSError
    except OSError:
        now[0] = 7.0
    assert clock.seconds == 1.0


def test_any_condition_counts_from_note_to_note() -> None:
    now, held = [0.0], [True]
    clock = BusyClock(lambda: held[0], clock=lambda: now[0])
    now[0] = 2.0
    clock.note()
    held[0] = False
    now[0] = 5.0
    assert clock.seconds == 2.0
    held[0] = True
    now[0] = 6.0
    assert clock.seconds == 3.0, "what holds now has held since the last look"
    clock.restart()
    now[0] = 6.5
    assert clock.seconds == 0.5
