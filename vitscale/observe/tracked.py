"""One run in a tracker, over all attempts: it is found again by an identity that lies in the run folder, and holds each step once.

TensorBoard and W&B cut their histories back to the step from which a run goes on.  MLflow cannot, nor can W&B offline or where rewinding
is not enabled: there the rows of steps that are repeated are not sent again, which is said in the log and in the tracker.
"""

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vitscale.files import write_atomically

log = logging.getLogger(__name__)
FOLDER, IDENTITY = "trackers", "identity.json"
_ID_TAG = "vitscale.id"         # by which a run is found again in MLflow, which gives runs their ids itself


@dataclass(frozen=True)
class Begins:
    """What a tracker is told when an attempt begins."""

    folder: Path
    settings: Mapping[str, bool | int | float | str]    # by dotted key
    step: int = 0               # from which the attempt goes on
    recorded: int = 0           # the last step that attempts before have recorded; more than `step`: some are repeated

    @property
    def name(self) -> str:
        return self.folder.name

    def changed(self, before: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
        """The settings as a tracker that knows those `before` is told: what was said of earlier steps stays, a change says from where."""
        told = {key: value for key, value in self.settings.items() if key not in before}
        return told | {f"{key} from step {self.step + 1}": value for key, value in self.settings.items()
                       if key in before and str(before[key]) != str(value)}


class Tracked(Protocol):
    def log(self, numbers: Mapping[str, float], step: int) -> None: ...
    def go_back(self, step: int) -> None:
        """What was logged of later steps no longer counts."""
    def finish(self) -> None: ...


def identity(folder: Path) -> str:
    """The id of the run in every tracker: made once, and written down before a tracker hears of it.

    A copy of the folder under another name is another run.
    """
    path = folder / FOLDER / IDENTITY
    try:
        known = json.loads(path.read_bytes())
        if known["name"] == folder.name and isinstance(known["id"], str) and known["id"]:
            return known["id"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: cannot be read (%s: %s); trackers begin another run", path, type(error).__name__, error)
    made = secrets.token_hex(8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"name": folder.name, "id": made}) + "\n")
    except OSError as error:
        log.warning("%s: %s; after a restart trackers begin another run", path, error.strerror or error)
    return made


class _TensorBoard:
    """Its readers drop what an event file holds of steps from that of a session's start on."""

    def __init__(self, begins: Begins) -> None:
        from accelerate.tracking import TensorBoardTracker
        from torch.utils.tensorboard.summary import hparams

        self._tracker = TensorBoardTracker(begins.name, str(begins.folder / FOLDER), purge_step=begins.step + 1)
        self._tracker.start()
        self.go_back(begins.step)       # once more: of a folder whose older files tell of no start, the first one cuts nothing
        for summary in hparams(dict(begins.settings), {}):      # accelerate's would make a run of its own at each start
            self._tracker.writer.file_writer.add_summary(summary)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(numbers), step=step)

    def go_back(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._tracker.writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)
        self._tracker.writer.flush()

    def finish(self) -> None:
        self._tracker.finish()


class _Wandb:
    """Rewinds where W&B allows it (https://docs.wandb.ai/guides/runs/rewind), which takes no row of a step before its last one."""

    def __init__(self, begins: Begins) -> None:
        import wandb

        self._begins, self._id = begins, os.environ.get("WANDB_RUN_ID") or identity(begins.folder)
        self._offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
        self._last = self._held = begins.recorded       # steps that it has been given; those it has, and takes no more
        self._open(begins.step)
        try:
            before = dict(wandb.config)
        except (TypeError, ValueError, AttributeError):
            before = {}
        self._tracker.store_init_configuration(begins.changed(before))

    def _open(self, step: int) -> None:
        """Go on with the run from `step`."""
        if self._last > step and not self._offline:
            try:
                self._start(resume_from=f"{self._id}?_step={step}")
                self._held = step
                return
            except Exception as error:      # its own errors, those of its server, and those of versions that know no such argument
                log.info("W&B does not rewind this run: %s: %s", type(error).__name__, error)
        self._start(resume="allow")
        coming = getattr(self._tracker.run, "step", 0)      # offline it knows of no attempt before
        self._held = coming - 1 if isinstance(coming, int) and coming > 0 else self._last
        self._say(step)

    def _start(self, **how: str) -> None:
        from accelerate.tracking import WandBTracker

        name = self._begins.name
        self._tracker = WandBTracker(os.environ.get("WANDB_PROJECT", name), id=self._id, name=os.environ.get("WANDB_NAME", name), **how)
        self._tracker.start()

    def _say(self, step: int) -> None:
        if self._held > step:
            self._tracker.store_init_configuration(_stands("wandb", step, self._held))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._last = step
        if step > self._held:
            self._tracker.log(dict(numbers), step=step)

    def go_back(self, step: int) -> None:
        if self._last <= step:
            return
        if self._offline:
            self._held = max(self._held, self._last)
            self._say(step)
        else:
            self._tracker.finish()
            self._open(step)

    def finish(self) -> None:
        self._tracker.finish()


class _MLflow:
    """Its histories can only be added to."""

    def __init__(self, begins: Begins) -> None:
        import mlflow
        from accelerate.tracking import MLflowTracker

        own, experiment = identity(begins.folder), os.environ.get("MLFLOW_EXPERIMENT_NAME", begins.name)
        client = mlflow.MlflowClient()
        known = client.get_experiment_by_name(experiment)
        found = client.search_runs([known.experiment_id], f"tags.`{_ID_TAG}` = '{own}'", max_results=1) if known is not None else []
        self._tracker = MLflowTracker(experiment, run_id=found[0].info.run_id if found else None, run_name=begins.name, tags={_ID_TAG: own})
        self._tracker.start()
        mlflow.set_tag(_ID_TAG, own)        # MLFLOW_TAGS has priority over those given
        data = client.get_run(self._tracker.active_run.info.run_id).data
        self._held = {metric.key: metric.step for metric in data.to_proto().metrics}
        told = begins.changed(data.params)
        self._tracker.store_init_configuration({key: value for key, value in told.items() if key in begins.settings})
        mlflow.set_tags({key: value for key, value in told.items() if key not in begins.settings})      # a parameter has one value
        self.go_back(begins.step)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        new = {key: value for key, value in numbers.items() if step > self._held.get(key, -1)}
        if new:
            self._tracker.log(new, step=step)
            self._held |= dict.fromkeys(new, step)

    def go_back(self, step: int) -> None:
        import mlflow

        held = max(self._held.values(), default=0)
        if held > step:
            mlflow.set_tags(_stands("mlflow", step, held))

    def finish(self) -> None:
        self._tracker.finish()


KINDS: dict[str, Callable[[Begins], Tracked]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow}


def _stands(name: str, step: int, held: int) -> dict[str, str]:
    """Says that a history could not be cut, in the log; -> the same for the tracker itself."""
    log.warning("tracker %s cannot cut its history: of steps %d to %d, which are made again, it keeps what it was first given; "
                "metrics.jsonl has what counts", name, step + 1, held)
    return {f"repeated from step {step + 1}": f"steps {step + 1} to {held} were made again; shown is what was first logged of them"}
