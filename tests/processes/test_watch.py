"""A process that works or beats lives; one that does neither hangs."""

from jaxserve.processes.watch import LOOK_S, Watch


class World:
    """A process whose time and work the test makes."""

    def __init__(self, *, start_timeout_s: float = 10.0, hang_timeout_s: float = 5.0) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0
        self.watch = Watch(
            1,
            start_timeout_s=start_timeout_s,
            hang_timeout_s=hang_timeout_s,
            clock=lambda: self.now_s,
            cpu_s=lambda _: self.cpu_s,
        )

    def pulses(self, seconds: float, *, is_compiling: bool) -> bool:
        """Whether the watch takes it for hung while pulses come, but no beats."""
        for _ in range(int(seconds / LOOK_S)):
            self.watch.pulse(is_compiling=is_compiling)
            if self.hangs_within(LOOK_S):
                return True
        return False

    def hangs_within(self, seconds: float, *, cpu_share: float = 0.0) -> bool:
        """Whether the watch takes it for hung while so much time passes."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += LOOK_S
            self.cpu_s += cpu_share * LOOK_S
            if self.watch.is_hung():
                return True
        return False


def test_a_start_may_take_for_ever_as_long_as_it_uses_the_processor() -> None:
    assert not World().hangs_within(10_000.0, cpu_share=0.05)


def test_a_start_that_uses_no_processor_hangs() -> None:
    world = World()
    assert not world.hangs_within(9.5, cpu_share=0.001)
    assert world.hangs_within(1.5, cpu_share=0.001)


def test_work_in_between_gives_a_start_its_time_again() -> None:
    world = World()
    for _ in range(10):
        assert not world.hangs_within(8.0)
        world.cpu_s += 1.0
    assert world.hangs_within(11.0)


def test_work_is_no_sign_of_life_once_there_were_beats() -> None:
    world = World()
    world.watch.beat()
    assert world.hangs_within(6.0, cpu_share=1.0)


def test_beats_are_signs_of_life() -> None:
    world = World()
    for _ in range(100):
        world.watch.beat()
        assert not world.hangs_within(4.5)


def test_what_the_one_who_looks_has_slept_through_does_not_count() -> None:
    world = World()
    world.watch.beat()
    world.now_s += 3600.0
    assert not world.watch.is_hung()


def test_a_process_that_is_stopped_is_silent_within_two_seconds_and_hangs_later() -> None:
    world = World(hang_timeout_s=180.0)
    world.watch.beat()
    world.watch.pulse(is_compiling=False)
    assert not world.hangs_within(1.0)
    assert not world.watch.is_silent
    assert not world.hangs_within(0.5)
    assert world.watch.is_silent
    world.watch.pulse(is_compiling=False)
    world.watch.beat()
    assert not world.watch.is_silent
    assert not world.hangs_within(29.0)
    assert world.hangs_within(2.0)


def test_a_long_step_is_silent_late_and_hangs_later_still() -> None:
    world = World(hang_timeout_s=180.0)
    world.watch.beat()
    assert not world.pulses(9.0, is_compiling=False)
    assert not world.watch.is_silent
    assert not world.pulses(2.0, is_compiling=False)
    assert world.watch.is_silent
    assert not world.pulses(160.0, is_compiling=False)
    assert world.pulses(20.0, is_compiling=False)


def test_a_compilation_may_take_longer_than_a_step_but_not_stand_still() -> None:
    world = World(start_timeout_s=50.0, hang_timeout_s=5.0)
    world.watch.beat()
    for _ in range(10):
        assert not world.pulses(40.0, is_compiling=True)
        world.cpu_s += 1.0
    assert world.watch.is_silent
    assert world.pulses(60.0, is_compiling=True)


def test_a_compilation_of_a_process_that_is_stopped_hangs() -> None:
    world = World(hang_timeout_s=5.0)
    world.watch.beat()
    world.watch.pulse(is_compiling=True)
    assert world.hangs_within(3.0)
