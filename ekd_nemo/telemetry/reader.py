"""One thread that reads one meter: power on jittered ticks, counters each second and at marks.

Ticks lie on a grid with a random shift of up to a quarter of a period, so that they do not beat
with the device's own refresh. A call of the driver that hangs delays only this meter; the gap stays
a gap in the record, with an event that says how long, and no sample is made up for it.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ekd_nemo.meter.protocol import Meter
from ekd_nemo.records.clock import now
from ekd_nemo.records.lines import Cause, Line
from ekd_nemo.telemetry.scribe import Scribe
from ekd_nemo.units import NS_PER_S

JITTER: Final = 0.25
STALL_NS: Final = NS_PER_S
MARK_SPACING_NS: Final = NS_PER_S
T = TypeVar("T")


class MeterReader(threading.Thread):
    """Reads `meter` until told to stop, it is exhausted or something fails.

    Args:
        meter: read by this thread only.
        scribe: where the lines go.
        power_period_ns: between power reads.
        counter_period_ns: between counter reads without marks.
        on_end: called from the thread when it ends, however it ends.

    Attributes:
        ready: set once the first tick is in the file, or the thread has ended.
        error: what ended the thread, if it failed.
        ticks, ticks_missed, driver_wall_ns, driver_cpu_ns: what it did and cost.
    """

    def __init__(
        self,
        meter: Meter,
        scribe: Scribe,
        *,
        power_period_ns: int,
        counter_period_ns: int,
        on_end: Callable[[], None],
    ) -> None:
        """Prepare the thread; `start` starts it."""
        super().__init__(name=f"meter-{meter.name}", daemon=True)
        self.meter = meter
        self.ready = threading.Event()
        self.error: Exception | None = None
        self.ticks = 0
        self.ticks_missed = 0
        self.driver_wall_ns = 0
        self.driver_cpu_ns = 0
        self.call_began_ns: int | None = None
        self._scribe = scribe
        self._power_period_ns = power_period_ns
        self._counter_period_ns = counter_period_ns
        self._on_end = on_end
        self._random = random.Random(time.monotonic_ns())
        self._wake = threading.Condition()
        self._stopping = False
        self._marked = False
        self._counters_ns = 0
        self._mark_read_ns = -MARK_SPACING_NS

    def mark(self) -> None:
        """A phase began or ended now: read the counters, at most once a second."""
        with self._wake:
            self._marked = True
            self._wake.notify()

    def stop(self) -> None:
        """Take a last reading and end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def stalled_ns(self) -> int:
        """How long the driver has not answered; 0 if it is not being asked."""
        began_ns = self.call_began_ns
        return 0 if began_ns is None else time.monotonic_ns() - began_ns

    def run(self) -> None:
        """The thread."""
        try:
            self._read_until_stopped()
        except Exception as error:  # handed to the supervisor, which ends the sampler with it
            self.error = error
        finally:
            self.ready.set()
            self._on_end()

    def _read_until_stopped(self) -> None:
        self._scribe.write(self._slow("start"))
        grid_ns, tick = time.monotonic_ns(), 0
        while not self.meter.exhausted:
            tick += 1
            shift = self._random.uniform(-JITTER, JITTER)
            planned_ns = grid_ns + round((tick + shift) * self._power_period_ns)
            if self._sleep_until(planned_ns):
                break
            tick += self._count_missed(planned_ns)
            self._scribe.write(self._tick())
            self.ticks += 1
            self.ready.set()
        last = self._scribe.power(self.meter, self._ask(self.meter.read_power))
        self._scribe.write([*last, *self._slow("stop")])

    def _sleep_until(self, planned_ns: int) -> bool:
        """Sleep, serving marks meanwhile; True when told to stop."""
        while True:
            with self._wake:
                rest_ns = planned_ns - time.monotonic_ns()
                if not (self._stopping or self._marked) and rest_ns > 0:
                    self._wake.wait(rest_ns / NS_PER_S)
                if self._stopping:
                    return True
                marked, self._marked = self._marked, False
            if marked and time.monotonic_ns() - self._mark_read_ns >= MARK_SPACING_NS:
                self._mark_read_ns = time.monotonic_ns()
                self._scribe.write(self._counters("mark"))
            if time.monotonic_ns() >= planned_ns:
                return False

    def _count_missed(self, planned_ns: int) -> int:
        """Ticks whose time has passed already; a delay not of the driver's making is an event."""
        late_ns = time.monotonic_ns() - planned_ns
        missed = max(late_ns // self._power_period_ns, 0)
        self.ticks_missed += missed
        if late_ns >= STALL_NS and not self._driver_was_slow:
            self._scribe.write([self._scribe.event("late", now(), duration_ns=late_ns)])
        self._driver_was_slow = False
        return missed

    def _tick(self) -> Sequence[Line]:
        lines = self._scribe.power(self.meter, self._ask(self.meter.read_power))
        if time.monotonic_ns() - self._counters_ns >= self._counter_period_ns:
            lines += self._slow("period")
        return lines

    def _slow(self, cause: Cause) -> list[Line]:
        """Counters and states."""
        lines = self._counters(cause)
        return lines + self._scribe.states(self.meter, self._ask(self.meter.read_state))

    def _counters(self, cause: Cause) -> list[Line]:
        self._counters_ns = time.monotonic_ns()
        return self._scribe.counters(self.meter, self._ask(self.meter.read_counters), cause)

    _driver_was_slow = False

    def _ask(self, read: Callable[[], T]) -> T:
        """Call the driver, noting what it takes and whether it stalled."""
        wall_ns, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        self.call_began_ns = wall_ns
        try:
            return read()
        finally:
            self.call_began_ns = None
            took_ns = time.monotonic_ns() - wall_ns
            self.driver_wall_ns += took_ns
            self.driver_cpu_ns += time.thread_time_ns() - cpu_ns
            if took_ns >= STALL_NS:
                self._driver_was_slow = True
                detail = f"{self.meter.name} {read.__name__}"
                event = self._scribe.event("stall", now(), duration_ns=took_ns, detail=detail)
                self._scribe.write([event])
