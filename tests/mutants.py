"""Small faults put into the code one by one, and whether the tests notice: `python tests/mutants.py [NAME ...]`.

Each is an edit of one line of one module in a copy of the tree, with the tests that should fail for it: an off-by-one, a dropped
exchange, a wrong scale, a swallowed error.  The table of the last whole run is tests/mutants.md.  Not a test itself: all of them take half
an hour.  That each still fits the code is one (test_layout.py).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests" / "mutants.md"


@dataclass(frozen=True)
class Mutant:
    name: str
    path: str               # below vitscale/
    old: str                # stands in the file once
    new: str
    tests: tuple[str, ...]  # below tests/


MUTANTS = (
    Mutant("epoch ends a batch late", "data/order.py", "self.steps_per_epoch = -(-self.epoch_size // global_batch)",
           "self.steps_per_epoch = self.epoch_size // global_batch + 1", ("data/test_data_order.py",)),
    Mutant("last batch of an epoch is whole", "data/order.py", "size = min(self.global_batch, self.epoch_size - place)",
           "size = self.global_batch", ("data/test_data_order.py",)),
    Mutant("draws of the next block", "data/draws.py", "np.uint64(first // 4 + 1)", "np.uint64(first // 4)", ("data/test_data_order.py",
           "data/test_augment_stream.py")),
    Mutant("epochs draw alike", "data/draws.py", "return _permutation(seed, _SHARDS, epoch, 0, count)",
           "return _permutation(seed, _SHARDS, 0, 0, count)", ("data/test_data_order.py",)),
    Mutant("lanes rounded the other way", "data/mixture.py", "key=lambda one: owned[one] - exact[one]",
           "key=lambda one: exact[one] - owned[one]", ("data/test_mixture.py",)),
    Mutant("crop never touches the last row", "data/crop.py", "(height - h + 1)", "(height - h)", ("data/test_data_decode.py",
           "data/test_augment_stream.py")),
    Mutant("small decode from twice the size", "data/crop.py", ">= 3 * scale * size", ">= 2 * scale * size", ("data/test_data_decode.py",)),
    Mutant("mixup keeps its own label", "data/mix.py", "targets.gather(1, theirs) + (1 - share)[:, None]",
           "targets.gather(1, theirs) + share[:, None]", ("data/test_mix.py",)),
    Mutant("a bad sample counts", "data/batch.py", "report.bad.append(self._describe(plan, slot, error))", "pass",
           ("data/test_data_faults.py",)),
    Mutant("an error of a decoder is swallowed", "data/jpeg.py",
           'raise BadSample("decode", f"a JPEG with zeroed bytes at its byte {at}")', "pass", ("data/test_data_jpeg.py",)),
    Mutant("epochs of repeats are short", "recipe/duration.py", "return stretches * stretch + rest * global_batch",
           "return stretches * num_samples + rest * global_batch", ("recipe/test_duration.py",)),
    Mutant("a password is shown", "recipe/redact.py", "return {key: redacted(value) for key, value in values.items()}", "return values",
           ("recipe/test_redact.py",)),
    Mutant("tensor ranks get their own samples", "recipe/axes.py",
           'return not any(place for name, place in self.at(rank).items() if name in SAME_SAMPLES)', "return True",
           ("recipe/test_axes.py",)),
    Mutant("warm-up from the step's beginning", "optim/schedule.py", "return peak * images / warmup", "return peak * (images - 1) / warmup",
           ("optim/test_schedule.py",)),
    Mutant("cosine over all, not what is left", "optim/schedule.py", "passed, span = images - warmup, total - warmup",
           "passed, span = images - warmup, total", ("optim/test_schedule.py",)),
    Mutant("LAMB without its second correction", "optim/lamb.py", "torch._foreach_div_(updates, (1 - beta1**step).float())", "pass",
           ("optim/test_optimizers.py",)),
    Mutant("Lion moves with the other beta", "optim/lion.py", "updates = torch._foreach_lerp(means, gradients, 1 - beta1)",
           "updates = torch._foreach_lerp(means, gradients, 1 - beta2)", ("optim/test_optimizers.py",)),
    Mutant("the average forgets too fast", "optim/ema.py", "self._locals(), 1 - ", "self._locals(), 2 - 2 * ", ("optim/test_ema.py",)),
    Mutant("depth counted from one below", "optim/groups.py", "layer_decay ** (len(units) + 1 - depth_of(name, units))",
           "layer_decay ** (len(units) - depth_of(name, units))", ("optim/test_groups.py",)),
    Mutant("the loss is not summed over ranks", "parallel/world.py", "            dist.all_reduce(values)\n", "            pass\n",
           ("parallel/test_engines.py",)),
    Mutant("votes are not exchanged", "parallel/world.py", "dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self.host_group)", "pass",
           ("parallel/test_evaluation_between_steps.py", "chaos/test_stop_at_any_moment.py")),
    Mutant("gradients are divided once more", "train/step.py", "loss * (world.data_size / batch.size)", "loss / batch.size",
           ("train/test_step.py", "parallel/test_combinations.py")),
    Mutant("a masked sample counts", "train/step.py", "torch.where(weight > 0, values * weight, 0.0).sum()", "values.sum()",
           ("train/test_step.py",)),
    Mutant("the best checkpoint is deleted", "checkpoint/retain.py", "kept = {*newest[-keep:], best}", "kept = {*newest[-keep:]}",
           ("checkpoint/test_store.py",)),
    Mutant("an old attempt may write", "checkpoint/lease.py",
           'raise LeaseLost(f"{self.folder.parent}: attempt', 'log.info(f"{self.folder.parent}: attempt',
           ("checkpoint/test_lease.py",)),
    Mutant("a streak of high losses is forgiven", "resilience/guard.py", "if loss > limit or (self._high and not finite):",
           "if loss > limit and not self._high:", ("resilience/test_guard.py",)),
    Mutant("a rollback keeps the step at fault", "resilience/skips.py", 'if step >= row["before_step"] and not known:',
           'if step > row["before_step"] and not known:', ("resilience/test_skips.py",)),
    Mutant("a slow rank is held against itself", "resilience/stragglers.py", "(ratio > self.ratio) & (excess > self.share)",
           "(ratio > self.ratio) | (excess > self.share)", ("resilience/test_stragglers.py",)),
    Mutant("a cause that is none", "resilience/outcome.py", 'raise ValueError(f"{cause!r} is no cause', 'print(f"{cause!r} is no cause',
           ("resilience/test_outcome.py",)),
    Mutant("a requeue is no new try", "cluster/tries.py",
           'return self.kind == "new" or self.lost is not None', 'return self.kind == "new"',
           ("cluster/test_tries.py",)),
    Mutant("a chain is a link short", "cluster/bill.py",
           "return math.ceil(bill.hours / usable) + 1", "return math.ceil(bill.hours / usable)",
           ("cluster/test_submit.py", "cluster/test_sbatch_text.py")),
    Mutant("lost time is nobody's", "train/goodput.py", 'self._carried["waiting"] += self.started - last_sign', "pass",
           ("train/test_goodput.py",)),
    Mutant("refused updates are not counted", "observe/totals.py", 'self.nonfinite += row.get("applied") is False', "pass",
           ("observe/test_totals.py",)),
    Mutant("MFU of one device", "observe/meters.py", "peak_flops * world", "peak_flops", ("observe/test_meters.py",)),
    Mutant("backward costs as much as forward", "plan/anatomy.py", "return 3 * sum", "return 2 * sum",
           ("plan/test_flops.py", "plan/test_plan.py")),
    Mutant("memory of one rank too few", "plan/memory.py", "return -(-dividend // divisor)", "return dividend // divisor",
           ("plan/test_memory.py",)),
    Mutant("LoRA's scale", "models/lora.py", "lora.alpha / lora.rank * (up @ down)", "lora.alpha * (up @ down)",
           ("train/test_fine_tuning.py", "checkpoint/test_weights.py", "export/test_export_folders.py")),
    Mutant("MAE's loss of the visible", "objectives/masked.py",
           "masked = order[:, num_visible(order.shape[1], self.objective.mask_ratio):]",
           "masked = order[:, :num_visible(order.shape[1], self.objective.mask_ratio)]", ("objectives/test_masked.py",)),
    Mutant("soft teachers without T squared", "objectives/distillation.py", ".sum(dim=1) * temperature**2", ".sum(dim=1) * temperature",
           ("objectives/test_distillation.py",)),
    Mutant("smoothing in evaluation", "objectives/classification.py",
           'return per_sample_loss(output, seen.labels, "cross_entropy" if seen.labels.ndim == 1 else "binary_cross_entropy")',
           "return self.losses(output, seen)", ("objectives/test_classification_loss.py",)),
    Mutant("Wilson's interval without its middle", "evaluate/metrics.py", "middle = (share + over / 2) / (1 + over)", "middle = share",
           ("evaluate/test_metrics.py",)),
    Mutant("an image is its own neighbour", "evaluate/neighbours.py", "row[row != own][:depth - 1]", "row[:depth - 1]",
           ("evaluate/test_probes.py", "evaluate/test_metrics.py")),
    Mutant("relevance with the identity", "explain/rollout.py", "return total - own", "return total", ("explain/test_maps_by_hand.py",)),
    Mutant("a soup keeps what hurts", "export/average.py", "stays = score >= best", "stays = True", ("export/test_average.py",)),
    Mutant("intervals too narrow", "scaling/intervals.py", "[(1 - level) / 2, (1 + level) / 2]", "[1 - level, level]",
           ("scaling/test_intervals.py",)),
    Mutant("spread over n", "scaling/seeds.py", "/ (len(known) - 1)) if", "/ len(known)) if", ("scaling/test_seeds.py",)),
    Mutant("a backtest that looks ahead", "scaling/backtest.py", "for level in levels[:-1] if", "for level in levels if",
           ("scaling/test_intervals.py",)),
    Mutant("a checkpoint is due a step late", "train/state.py", "return after.step // every.amount > before.step // every.amount",
           "return (after.step - 1) // every.amount > (before.step - 1) // every.amount", ("train/test_state.py",)),
    Mutant("a falling loss is worse", "train/state.py",
           'return value < than - by if COLUMNS[metric].better == "lower" else value > than + by',
           "return value > than + by", ("train/test_state.py",)),
    Mutant("the mean pace of all time", "train/pace.py", "self._count += 1", "self._count += 2", ("train/test_pace.py",)),
)


def faulty(folder: Path, mutant: Mutant) -> str:
    """The text of the module with its fault.  Raises ValueError where the line is not there once."""
    text = (folder / "vitscale" / mutant.path).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.path} has {text.count(mutant.old)} times: {mutant.old}")
    return text.replace(mutant.old, mutant.new)


def copy_of(folder: Path) -> Path:
    """The tree as it stands, without what git ignores, but with the native decoder."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in [*names.splitlines(), *(str(path.relative_to(ROOT)) for path in ROOT.glob("vitscale/data/native/*.so"))]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def noticed(folder: Path, mutant: Mutant) -> tuple[str, float]:
    """(the first test that failed, or "survived"; seconds) with that fault."""
    path = folder / "vitscale" / mutant.path
    whole = path.read_text(encoding="utf-8")
    path.write_text(faulty(folder, mutant), encoding="utf-8")
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not all",
             *(f"tests/{name}" for name in mutant.tests)],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
            timeout=900)
    except subprocess.TimeoutExpired:
        return "hung", time.monotonic() - began
    finally:
        path.write_text(whole, encoding="utf-8")
    failed = [line.split(" - ")[0].removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (failed[0] if failed else f"ended with {done.returncode}") if done.returncode else "survived", time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of mutants; all if none are given, and then the table is written")
    given = parser.parse_args()
    chosen = [one for one in MUTANTS if not given.names or one.name in given.names]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = copy_of(Path(name))
        for mutant in chosen:
            found, seconds = noticed(folder, mutant)
            rows.append(f"| {mutant.name} | `{mutant.path}` | {found if found == 'survived' else f'`{found}`'} | {seconds:.0f} |")
            print(rows[-1], flush=True)
    survived = sum("| survived |" in row for row in rows)
    print(f"{survived} of {len(rows)} survived")
    if not given.names:
        TABLE.write_text(
            f"# Mutants\n\n{len(rows) - survived} of {len(rows)} faults were noticed on {time.strftime('%Y-%m-%d')} "
            "(`python tests/mutants.py`).\n\n| fault | in | noticed by | seconds |\n|---|---|---|---|\n" + "\n".join(rows) + "\n",
            encoding="utf-8")


if __name__ == "__main__":
    main()
