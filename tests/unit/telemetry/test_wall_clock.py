"""The wall clock: what the kernel says of it, and when it is set."""

from ekd_nemo.records.clock import Instant, now
from ekd_nemo.telemetry.wall_clock import StepDetector, read_wall_clock

S = 10**9


def test_the_kernel_is_asked() -> None:
    clock = read_wall_clock()
    if clock is not None and clock.is_synchronised:
        assert clock.max_error_us is not None
        assert 0 <= clock.max_error_us <= 16_000_000  # the kernel gives up beyond 16 s
    elif clock is not None:
        assert clock.max_error_us is None


def test_setting_the_clock_is_noticed_once_and_slewing_is_not() -> None:
    detector = StepDetector(Instant(0, 1000 * S))
    assert detector.step_ns(Instant(1 * S, 1001 * S)) == 0
    assert detector.step_ns(Instant(2 * S, 1002 * S + 500_000)) == 0
    assert detector.step_ns(Instant(3 * S, 1013 * S + 500_000)) == 10 * S
    assert detector.step_ns(Instant(4 * S, 1014 * S + 500_000)) == 0
    assert detector.step_ns(Instant(5 * S, 995 * S + 500_000)) == -20 * S


def test_two_looks_at_real_clocks_are_no_step() -> None:
    assert StepDetector(now()).step_ns(now()) == 0
