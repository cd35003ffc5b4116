"""The sampler process of one node: `python -m ekd_nemo.telemetry.sampler --run DIR`.

It reads the node's meters into `telemetry/power-<node>.jsonl` and depends on nobody: killed ranks
or a killed launcher do not end it. It ends when it is told to (SIGTERM, unless that is meant for
others, SIGINT, SIGHUP, SIGUSR2), when every process that it follows (`--until-pid` and whoever sent
marks) has been gone for `--linger-s`, or when another sampler of the same run replaces it. Then it
writes a stop line with what it cost, and exits 0.
"""

import json
import os
import resource
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

import psutil

import ekd_nemo
from ekd_nemo.errors import EXIT_FAILURE, EXIT_OK, EkdError, UserError
from ekd_nemo.meter.choose import open_meters
from ekd_nemo.records.clock import node_name, now
from ekd_nemo.records.jsonl import JsonlStore
from ekd_nemo.records.lines import Line, StartLine, StopLine
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.marks import POKE
from ekd_nemo.telemetry.ownership import (
    REPLACE,
    listen_for_marks,
    may_command,
    own_device,
    receive,
)
from ekd_nemo.telemetry.reader import MeterReader
from ekd_nemo.telemetry.rolling import Packer
from ekd_nemo.telemetry.scribe import Scribe
from ekd_nemo.telemetry.settings import SamplerSettings, from_arguments, make_parser
from ekd_nemo.telemetry.wall_clock import StepDetector, read_wall_clock
from ekd_nemo.telemetry.watch import Watch

NS_PER_MS: Final = 1_000_000
NS_PER_US: Final = 1_000
US_PER_S: Final = 1_000_000
MIB: Final = 1 << 20
HOST_PERIOD_S: Final = 1.0
JOIN_TIMEOUT_S: Final = 2.0
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


class SamplerProcess:
    """Supervises the readers; everything that happens reaches its one selector."""

    def __init__(self, run: RunDir, settings: SamplerSettings) -> None:
        """Take the run's socket, open the meters, own the devices, write the first lines."""
        self._settings = settings
        self._node = settings.meters.node or node_name()
        run.telemetry.mkdir(parents=True, exist_ok=True)
        self._marks = listen_for_marks(run.telemetry, self._node)
        self._opened = open_meters(settings.meters)
        self._owned, shared = self._own_devices()
        self.sampler = secrets.token_hex(4)
        store = JsonlStore(run.power(self._node))
        self._scribe = Scribe(store, node=self._node, sampler=self.sampler)
        self._scribe.write([*self._first_lines(), *self._shared_lines(shared)])
        self._packer = Packer(store.path)
        self._startup_cpu_us = 0
        self._steps = StepDetector(now())
        self._selector = selectors.DefaultSelector()
        self._watch = Watch(settings.linger_s)
        self._wake_read, self._wake_write = socket.socketpair()
        self._readers = [
            MeterReader(
                meter,
                self._scribe,
                power_period_ns=settings.power_period_ms * NS_PER_MS,
                counter_period_ns=settings.counter_period_ms * NS_PER_MS,
                on_end=self._wake,
            )
            for meter in self._opened.meters
        ]

    def _own_devices(self) -> tuple[list[socket.socket], list[str]]:
        """Sockets that hold the devices, and the host devices that another sampler reads too."""
        owned: list[socket.socket] = []
        shared: list[str] = []
        for device in (d for meter in self._opened.meters for d in meter.devices):
            held = own_device(device.uuid)
            if held is not None:
                owned.append(held)
            elif device.exclusive:
                raise UserError(
                    f"{device.uuid} is already measured by another sampler on {self._node}; "
                    "a device has one owner: stop that one, or leave the device out with --uuid"
                )
            else:
                shared.append(device.uuid)
        return owned, shared

    def _first_lines(self) -> list[Line]:
        clock = read_wall_clock()
        start = StartLine(
            **self._scribe.stamp(now()),
            pid=os.getpid(),
            power_period_ms=self._settings.power_period_ms,
            counter_period_ms=self._settings.counter_period_ms,
            code_version=ekd_nemo.__version__,
            meters=[meter.name for meter in self._opened.meters],
            why=self._opened.why,
            wall_synchronised=None if clock is None else clock.is_synchronised,
            wall_max_error_us=None if clock is None else clock.max_error_us,
        )
        return [start, *self._device_lines()]

    def _device_lines(self) -> list[Line]:
        return [self._scribe.device(m, d) for m in self._opened.meters for d in m.devices]

    def _shared_lines(self, shared: Sequence[str]) -> list[Line]:
        detail = "another sampler on this node reads it too: its energy is in both records"
        return [self._scribe.event("shared", now(), uuid, detail=detail) for uuid in shared]

    def describe(self) -> dict[str, Any]:
        """What the ready line tells: id, pid, node, devices."""
        devices = [
            {
                "uuid": device.uuid,
                "name": device.name,
                "node": self._node,
                "device_kind": device.device_kind,
                "role": device.role,
                "meter": meter.name,
                "source": meter.source,
                "power_limit_mw": device.power_limit_mw,
            }
            for meter in self._opened.meters
            for device in meter.devices
        ]
        return {
            "sampler": self.sampler,
            "pid": os.getpid(),
            "node": self._node,
            "why": self._opened.why,
            "devices": devices,
        }

    def run(self) -> int:
        """Sample until there is a reason to stop; returns the exit code."""
        self._listen()
        for reader in self._readers:
            reader.start()
        for pid in self._settings.until_pids:
            self._watch.add(pid)
        for reader in self._readers:
            reader.ready.wait(timeout=max(10.0, 3e-3 * self._settings.power_period_ms))
        self._startup_cpu_us = _cpu_us()
        _announce(self.describe())
        reason = self._supervise()
        return self._finish(reason)

    def _wake(self) -> None:
        self._wake_write.send(b"\0")

    def _listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, _leave_to_wakeup_fd)
        if self._settings.ignores_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._selector.register(self._marks, selectors.EVENT_READ)

    def _supervise(self) -> str:
        """Serve signals, marks and ends of processes; returns why to stop."""
        psutil.cpu_percent()
        next_host_s = time.monotonic() + HOST_PERIOD_S
        while True:
            for key, _ in self._selector.select(max(next_host_s - time.monotonic(), 0.0)):
                reason = self._serve(key)
                if reason is not None:
                    return reason
            if time.monotonic() >= next_host_s:
                next_host_s = time.monotonic() + HOST_PERIOD_S
                self._write_host()
                if self._watch.is_over():
                    return "watched processes gone"

    def _serve(self, key: selectors.SelectorKey) -> str | None:
        if key.fileobj is self._wake_read:
            return self._serve_wake(self._wake_read.recv(64))
        return self._serve_marks()

    def _serve_wake(self, numbers: bytes) -> str | None:
        for number in numbers:
            if number:
                return signal.Signals(number).name
        failed = next((reader for reader in self._readers if reader.error), None)
        if failed is not None:
            return f"failed: {failed.error}"
        if any(reader.is_alive() and not reader.meter.exhausted for reader in self._readers):
            return None
        return "end of replay"

    def _serve_marks(self) -> str | None:
        while (message := receive(self._marks)) is not None:
            if message.body == POKE:
                self._watch.add(message.pid)
                for reader in self._readers:
                    reader.mark()
            elif message.body == REPLACE and may_command(message):
                return "replaced by a newer sampler of this run"
            else:
                event = self._scribe.event("bad_mark", now(), detail=f"from pid {message.pid}")
                self._scribe.write([event])
        return None

    def _write_host(self) -> None:
        memory = psutil.virtual_memory()
        line = self._scribe.host(
            psutil.cpu_percent(), memory.total - memory.available, memory.total
        )
        self._scribe.write([line, *self._clock_lines()])
        if self._scribe.size_bytes() > self._settings.roll_mib * MIB:
            self._scribe.roll(self._device_lines())
        self._packer.poke()

    def _clock_lines(self) -> list[Line]:
        """An event if the wall clock was set in the last second."""
        at = now()
        step_ns = self._steps.step_ns(at)
        if not step_ns:
            return []
        way = "forwards" if step_ns > 0 else "backwards"
        return [self._scribe.event("clock_step", at, duration_ns=abs(step_ns), detail=way)]

    def _finish(self, reason: str) -> int:
        """Last readings, stop line, exit code; a driver that hangs is not waited for."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it is ending already
        for reader in self._readers:
            reader.stop()
        last: list[Line] = []
        for reader in self._readers:
            reader.join(JOIN_TIMEOUT_S)
            if reader.is_alive():
                detail = f"{reader.meter.name} still hung when the sampler ended"
                stalled_ns = reader.stalled_ns()
                last.append(
                    self._scribe.event("stall", now(), duration_ns=stalled_ns, detail=detail)
                )
        self._scribe.close([*last, self._stop_line(reason)])
        for held in (*self._owned, self._marks):  # a successor waits for the last one
            held.close()
        self._packer.finish()
        if last:
            os._exit(EXIT_OK)  # a thread inside the driver would keep the interpreter from ending
        for meter in self._opened.meters:
            meter.close()
        error = next((reader.error for reader in self._readers if reader.error), None)
        if error is not None:
            raise EkdError(f"sampler on {self._node}: {error}") from error
        return EXIT_OK

    def _stop_line(self, reason: str) -> Line:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return StopLine(
            **self._scribe.stamp(now()),
            reason=reason,
            cpu_user_us=round(used.ru_utime * US_PER_S),
            cpu_system_us=round(used.ru_stime * US_PER_S),
            startup_cpu_us=self._startup_cpu_us,
            driver_wall_us=sum(r.driver_wall_ns for r in self._readers) // NS_PER_US,
            driver_cpu_us=sum(r.driver_cpu_ns for r in self._readers) // NS_PER_US,
            max_rss_kib=used.ru_maxrss,
            ticks=sum(r.ticks for r in self._readers),
            ticks_missed=sum(r.ticks_missed for r in self._readers),
            repeats_dropped=self._scribe.repeats_dropped,
        )


def _cpu_us() -> int:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return round((used.ru_utime + used.ru_stime) * US_PER_S)


def _leave_to_wakeup_fd(_number: int, _frame: FrameType | None) -> None:
    """The signal's number comes through the wake-up descriptor; nothing to do here."""


def _announce(description: dict[str, Any]) -> None:
    """Tell whoever started us, once, that samples are being written; then leave its pipe alone."""
    sys.stdout.write(json.dumps(description) + "\n")
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def main(argv: Sequence[str] | None = None) -> int:
    """Sample as the command line says; one line on stderr and an exit code when that fails."""
    args = make_parser(__doc__).parse_args(argv)
    try:
        return SamplerProcess(RunDir(args.run), from_arguments(args)).run()
    except EkdError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
