"""A recording stand-in for the wandb library, put on the path by tests: init, log, config and finish as wandb 0.31 has them.

$WANDB_RECORDED is a folder that plays the server: ID.json holds {history: {step: row}, config}, inits.jsonl what each init was given.
$WANDB_REWINDS: yes; no (the server refuses, as where rewinding is not enabled); old (a version that does not know the argument).
As W&B's server does, it takes no row of a step before the last one.
"""

import json
import os
from pathlib import Path
from typing import Any


class Error(Exception):
    """wandb.Error."""


class _Config(dict[str, Any]):
    def update(self, values: dict[str, Any], allow_val_change: bool | None = None) -> None:     # type: ignore[override]
        assert allow_val_change or all(self.get(key, value) == value for key, value in values.items())
        super().update(values)
        if run is not None:
            run._write()


class Run:
    def __init__(self, id: str) -> None:
        self.id, self._file = id, Path(os.environ["WANDB_RECORDED"]) / f"{id}.json"
        told = json.loads(self._file.read_text()) if self._file.exists() else {"history": {}, "config": {}}
        self.history: dict[int, dict[str, Any]] = {int(step): row for step, row in told["history"].items()}
        self.config = _Config(told["config"])
        self.finished = False

    @property
    def step(self) -> int:
        return max(self.history) + 1 if self.history else 0

    def rewind(self, step: int) -> None:
        assert not self.history or max(self.history) >= step, "W&B refuses a step that was never logged"
        self.history = {at: row for at, row in self.history.items() if at <= step}

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        assert not self.finished
        assert step is not None
        if step >= max(self.history, default=0):
            self.history.setdefault(step, {}).update(data)
            self._write()

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        self.finished = True

    def _write(self) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps({"history": self.history, "config": self.config}))
        beside.replace(self._file)


run: Run | None = None
config = _Config()


def init(*, entity: str | None = None, project: str | None = None, dir: str | None = None, id: str | None = None,
         name: str | None = None, notes: str | None = None, resume: bool | str | None = None, resume_from: str | None = None,
         mode: str | None = None, **others: Any) -> Run:
    global run, config
    assert not others, others
    rewinds = os.environ.get("WANDB_REWINDS", "yes")
    with open(Path(os.environ["WANDB_RECORDED"]) / "inits.jsonl", "a") as file:
        file.write(json.dumps({"id": id, "project": project, "name": name, "resume": resume, "resume_from": resume_from}) + "\n")
    if resume_from is not None and rewinds == "old":
        raise TypeError("init() got an unexpected keyword argument 'resume_from'")
    if resume is not None and resume_from is not None:
        raise Error("`fork_from`, `resume`, or `resume_from` are mutually exclusive")
    if resume_from is not None and rewinds == "no":
        raise Error("rewinding is not enabled for this entity")
    assert id is not None
    made = Run(id)
    if resume_from is not None:
        of, _, step = resume_from.partition("?_step=")
        assert of == id
        made.rewind(int(step))
    run, config = made, made.config
    made._write()
    return made
