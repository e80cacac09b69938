"""What a PPO run does when a guard fires: it warns, goes back to a good checkpoint and takes smaller steps, or ends.

What the guards have seen is ``guards`` in run.json, one event each: ``update``, ``guard``, ``value``, ``threshold``, ``detail``,
``action`` (warned, rolled_back, ended, mend_reward), the words ``en`` and ``ja``; of a roll-back the update that the run went
back ``to``, the ``rate_factor`` from there, its ``count``, and how many there may be at ``most``.

A roll-back is an event that outlives what it drops: the factor of the learning rates follows from their number alone, so that a
run that is killed at any moment goes on with the steps that it would have taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from konomi.config import PPOJob
from konomi.errors import NotFiniteError, RunError
from konomi.jobs.common import Work
from konomi.reading import written_by_konomi
from konomi.runs import processes
from konomi.runs.observer import StepResult
from konomi.training.checkpoints import Checkpoints
from konomi.training.guard import ROLLING_BACK, Alarm, Watch
from konomi.training.ppo import PPOTrainer


class Guards:
    """The guards of a run under way."""

    def __init__(self, job: PPOJob, work: Work, trainer: PPOTrainer, checkpoints: Checkpoints) -> None:
        self.settings, self.run, self.observer = job.guard, work.run, work.observer
        self.trainer, self.checkpoints = trainer, checkpoints
        self.watch = Watch(job.ppo.batch_size, job.ppo.kl_cap, job.guard.off)
        self.events: list[dict[str, Any]] = work.run.info.get("guards") or []
        self.lines: list[Mapping[str, Any]] = [*processes.first(work.run.read_metrics)]
        with written_by_konomi(work.run.path):
            self._take_up()

    def _take_up(self) -> None:
        """Continue from the update where the trainer is now; later updates will be seen again."""
        update = self.trainer.update
        self.lines = [line for line in self.lines if line["update"] <= update]
        events = [each for each in self.events if each["action"] == "rolled_back" or each["update"] <= update]
        if events != self.events:
            self.events = events
            self.run.note(guards=events)
        self.trainer.rate_factor = self.settings.rate_factor ** self._count()
        self.watch.again(self.lines)

    def see(self, result: StepResult) -> tuple[bool, Alarm | None]:
        """Check an update; returns whether a guard warns, and the alarm that the run must be rolled back for."""
        self.lines.append({"update": result.update, **result.metrics})
        alarms = self.watch.see(result.update, result.metrics)
        warnings = [alarm for alarm in alarms if alarm.guard not in ROLLING_BACK]
        for alarm in warnings:
            self._record(alarm, "warned")
        return bool(warnings), next((alarm for alarm in alarms if alarm.guard in ROLLING_BACK), None)

    def back_from(self, error: NotFiniteError) -> bool:
        """As :meth:`back`, from an update, or the texts after one, in which a number was not finite."""
        if "not_finite" in self.settings.off:
            return False
        return self.back(Alarm(self.trainer.update + 1, "not_finite", math.nan, 0.0, error.what))

    def back(self, alarm: Alarm) -> bool:
        """Roll back to the last good checkpoint before an update, or to the beginning. False: the run has to end."""
        count, most = self._count() + 1, self.settings.retries
        if alarm.detail.startswith("reward") and any(
            each["action"] == "rolled_back" and (each["update"], each["detail"]) == (alarm.update, alarm.detail)
            for each in self.events
        ):
            self._record(alarm, "mend_reward")
            return False
        if count > most:
            self._record(alarm, "ended")
            return False
        self.checkpoints.drop_from(alarm.update - 1)
        try:
            to = self.checkpoints.load_newest(self.trainer.load, self.observer.warn) or 0
        except RunError as error:
            self.observer.warn(str(error))
            to = 0
        if to == 0:
            self.trainer.restart()
        self._record(alarm, "rolled_back", to=to, rate_factor=self.settings.rate_factor**count, count=count, most=most)
        self.run.truncate_after(to)
        self._take_up()
        return True

    def _count(self) -> int:
        return sum(each["action"] == "rolled_back" for each in self.events)

    def _record(self, alarm: Alarm, action: str, **more: float) -> None:
        event = alarm.event(action, **more)
        self.events.append(event)
        self.run.note(guards=self.events)
        self.observer.warn(f"update {alarm.update}: {event['en']}")
