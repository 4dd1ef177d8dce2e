"""The numbers of each objective besides its loss, and which of them ranks runs.

Here one is added, and nowhere else: see docs/extending.md.  This file needs no torch: `measure` is handed tensors and calls their methods.
"""

from dataclasses import dataclass

from vitscale.metrics.metric import EVALUATED, Metric, Panel, evaluated, trained
from vitscale.metrics.system import ACCURACY, BESIDE, EVALUATION_LOSS


@dataclass(frozen=True)
class Numbers:
    """What an objective tells besides the loss."""

    training: tuple[Metric, ...] = ()       # each step, of its global batch
    evaluation: tuple[Metric, ...] = ()     # each evaluation, of its images
    judge: Metric = EVALUATION_LOSS         # by which a run is judged: its best checkpoint, early stopping, tables of runs


NUMBERS: dict[str, Numbers] = {}            # by the objective's name in a recipe; of one that is not there: none, judged by its loss


def declare(objective: str, *metrics: Metric, judge: Metric | None = None) -> None:
    """Give an objective these numbers, beside those that it has.  `judge`: one of them, or the loss; None: it stays who it was.

    Raises ValueError for a column that a row has for something else, and for a judge of whom it is not said which way is better.
    """
    known = NUMBERS.get(objective, Numbers())
    if taken := [one.column for one in metrics if one.column in BESIDE]:
        raise ValueError(f"{objective}: metrics.jsonl has a column {taken[0]} already, which is no metric; take another key")
    evaluation = tuple(one for one in metrics if one.column.startswith(EVALUATED))
    training = tuple(one for one in metrics if one not in evaluation)
    found = Numbers(known.training + training, known.evaluation + evaluation, judge or known.judge)
    if found.judge not in (*found.evaluation, EVALUATION_LOSS) or not found.judge.better:
        raise ValueError(f"{objective}: wants a judge that its evaluations tell, with `better`, got {found.judge.column}")
    NUMBERS[objective] = found


TOP1 = evaluated("top1", "Top-1 accuracy", lambda task, output, seen: task.hits(output, seen, 1),
                 panel=ACCURACY, title="Top-1", unit="ratio", better="higher", card="accuracy")
TOP5 = evaluated("top5", "Top-5 accuracy", lambda task, output, seen: task.hits(output, seen, 5),
                 panel=ACCURACY, title="Top-5", unit="ratio", better="higher", card="top_5_accuracy", colour=2, compared=False)

# of objectives whose teacher answers over prototypes: both ways in which its answers can collapse bring it to 0
INFORMATION = trained("information", "How much the teacher's answers tell of their images", lambda task, output, seen:
                      seen.coupled.rows["mutual"], panel=Panel("Information", "ratio", zero=True, learning=True),
                      title="Information of the teacher", unit="ratio", word="information", least=0.01)

ANSWERS = Panel("Answers over prototypes", aside="nats", learning=True)
ENTROPY = trained("teacher_entropy", "Entropy of the teacher's answers in nats", lambda task, output, seen:
                  seen.coupled.rows["entropy"], panel=ANSWERS,
                  title="Entropy of the teacher", word="entropy")
DIVERGENCE = trained("divergence", "Kullback-Leibler divergence of the student's answers from the teacher's in nats",
                     lambda task, output, seen: task.divergence(output, seen), panel=ANSWERS,
                     title="Divergence from the teacher", word="divergence", colour=1)
LENGTH = trained("feature_norm", "Length of the student's features", lambda task, output, seen:
                 output[1].float().norm(dim=-1).unflatten(0, (-1, len(seen.labels))).mean(dim=0),
                 panel=Panel("Length of features", zero=True, learning=True), title="Length of features", word="length")
SIGREG = trained("sigreg_statistic", "SIGReg's statistic: how far the embeddings are from an isotropic Gaussian", lambda task, output, seen:
                 seen.coupled.rows["statistic"], panel=Panel("SIGReg", zero=True, learning=True), title="SIGReg")

for _name in ("dino", "ibot", "dinov2"):
    declare(_name, INFORMATION, ENTROPY, DIVERGENCE, LENGTH)
declare("lejepa", SIGREG, LENGTH)
declare("classification", TOP1, TOP5, judge=TOP1)
declare("distillation", TOP1, TOP5, judge=TOP1)
declare("rotation", TOP1, judge=TOP1)
declare("jigsaw", TOP1, judge=TOP1)
